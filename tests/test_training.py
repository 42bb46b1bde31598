"""The recipe against a plain loop in torch, gradient accumulation, devices, losses that are not finite."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from robustft.common.randomness import generator
from robustft.counterfactual.cam import relevance
from robustft.counterfactual.fill import single_source
from robustft.models.files import BEST
from robustft.training.checkpoints import LAST
from tests.small import assert_refused, command, prepared, trained, work  # noqa: F401 (a fixture)


def train_plainly(run, *, beta: float, threshold: float, accumulate: int, steps: int) -> dict[str, torch.Tensor]:
    """METHOD's recipe as one reads it: mask=object, fill=single, or vanilla fine-tuning with beta=0."""
    cfg, data = run.cfg, run.data
    data.setup()
    student, teacher = run.student().train(), run["teacher"]
    indices, images = data.split[0], data.training_set()
    optimizer = torch.optim.AdamW(student.parameters(), lr=cfg.optimizer.lr, weight_decay=cfg.optimizer.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=cfg.optimizer.lr, total_steps=steps, pct_start=cfg.optimizer.warmup
    )
    size, per_epoch = cfg.data.batch_size, len(indices) // cfg.data.batch_size
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        order = indices[torch.randperm(len(indices), generator=generator("order of images", cfg.seed, epoch))]
        micro_batches = order[place * size : (place + 1) * size].chunk(accumulate)
        for number, chosen in enumerate(micro_batches):
            batch = images.__getitems__(chosen.tolist())
            x, y = student.preprocess.normalise(batch.images), batch.labels
            loss = F.cross_entropy(student(x), y)
            if beta:
                random = generator("training step", cfg.seed, step * accumulate + number, 0)
                cam = relevance(student, x, y)[-1].detach()
                mask = (cam > threshold).view(-1, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
                x_cf = torch.where(mask, x[single_source(len(x), random)], x)
                loss = loss + beta * ((student.encode(x_cf) - teacher.encode(x_cf).detach()) ** 2).mean()
            (loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return student.state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", ["counterfactual", "finetune"])
def test_against_a_plain_loop(work, method, accumulate):  # noqa: F811
    settings = (
        f"method={method}",
        f"trainer.accumulate_grad_batches={accumulate}",
        "trainer.check_val_every_n_epoch=9",
    )
    run = prepared(work / f"plain-{method}-{accumulate}", *settings)
    size, patch = run.zeroshot.preprocess.size, run.zeroshot.patch_size
    assert (size, patch) == (64, 8)
    beta = run.cfg.beta or 0
    threshold = run.cfg.mask.threshold or math.nan
    expected = train_plainly(run, beta=beta, threshold=threshold, accumulate=accumulate, steps=6)
    start = run.zeroshot.state_dict()
    made = trained(run).state_dict()
    for name, value in expected.items():
        moved = (value - start[name]).abs().max()
        assert moved > 1e-4 and difference(name, made[name], value) < 1e-6, name


def difference(name: str, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The largest; of attention without the biases of keys, which change nothing: their gradient is rounding."""
    apart = (one - other).abs()
    return (apart.view(3, -1)[[0, 2]] if name.endswith("attn.in_proj_bias") else apart).max()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    cache = {"ROBUSTFT_CACHE": str(tmp_path / "cache")}
    diverges = command(tmp_path, "optimizer.lr=1e30", "hydra.run.dir=a", "save_minutes=0", **cache)
    assert_refused(diverges, "no longer finite at step", "loss ", "ce ", "distance ", "Lower optimizer.lr")
    at_the_end = command(
        tmp_path, "method=finetune", "optimizer.lr=1e38", "trainer.max_steps=1", "hydra.run.dir=b", **cache
    )
    assert_refused(at_the_end, "logits are not finite")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert not (folder / "results.json").exists() and not (folder / "model.safetensors").exists()
        assert (folder / "error.txt").read_text()
    if (tmp_path / "a" / LAST).exists():
        state = torch.load(tmp_path / "a" / LAST, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("method=finetune",),
        ("mask=none",),
        ("mask=object", "fill=none"),
        ("mask=object", "fill=none", "trainer.accumulate_grad_batches=2"),
        ("method=kd", "mask=object", "fill=none"),
    ],
    ids=" ".join,
)
def test_two_devices_give_the_numbers_of_one(tmp_path, settings):
    """Fills that take patches from the local batch are left out: their pool is another one."""
    results, weights = [], []
    # 15 images: unequal shares for the devices, and a last batch that only one of them has.
    shared = ("data.test_images=15", "data.eval_batch_size=4", "optimizer.lr=1e-4", *settings)
    for devices in (1, 2):
        several = ("trainer.devices=2", "trainer.strategy=ddp") if devices == 2 else ()
        answer = command(
            tmp_path, *shared, *several, f"hydra.run.dir=d{devices}", ROBUSTFT_CACHE=str(tmp_path / f"cache{devices}")
        )
        assert answer.returncode == 0, answer.stderr[-3000:]
        results.append(json.loads((tmp_path / f"d{devices}" / "results.json").read_text()))
        weights.append(load_file(tmp_path / f"d{devices}" / "model.safetensors"))
    one, two = results
    # No image is counted twice or left out, and no sum has an order: the zero-shot model's scores are the same bits.
    assert one["zeroshot"] == two["zeroshot"]
    for key in ("id", "ood", "holdout"):  # weights differ in their last digits
        assert counts(one[key]) == counts(two[key])
    for name in one["metrics"]:
        assert one["id"][name] == pytest.approx(two["id"][name], rel=1e-4), name
    assert {name: score["n"] for name, score in two["ood"].items()} == dict.fromkeys(two["ood"], 15)
    for name, value in weights[0].items():
        assert difference(name, value, weights[1][name]) < 2e-6, name
    assert not (tmp_path / "d2" / BEST).exists()


def counts(scores):
    """Of a block of results what is made of whole images."""
    kept = ("name", "n", "top1", "per_class", "worst_class", "macro_f1")
    return {
        key: counts(value) if isinstance(value, dict) else value
        for key, value in scores.items()
        if isinstance(value, dict) or key in kept
    }
