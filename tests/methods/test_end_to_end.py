"""Every method through `run_in`, what the command line calls, on a small tiny model with random weights."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import open_dict
from safetensors.torch import load_file

import robustft
from robustft.cli import compose
from robustft.cli.main import run_in
from robustft.components import make_data
from robustft.data.sampling import TrainSampler
from robustft.methods import features
from robustft.methods.linear_probe import LinearProbe
from robustft.methods.lpft import LPFT
from robustft.models.classifier import Classifier
from tests.methods.micro import same_bits

SMALL = """model=tiny model.pretrained=null data=scenes data.train_images=160 data.test_images=40 data.holdout=40
    data.batch_size=24 trainer=cpu trainer.max_epochs=2 trainer.enable_progress_bar=false logger=none""".split()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory):
    """A folder for runs, with a cache of its own."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTFT_CACHE", str(folder / "cache"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def do(work: Path, name: str, *settings: str) -> dict:
    """One run; the content of its results.json."""
    typed = [*SMALL, *settings]
    cfg = compose.compose_first(compose.parse(typed))
    with open_dict(cfg):
        cfg.pop("hydra")
    run_in(cfg, work / name, list(settings))  # the others are for all methods
    return json.loads((work / name / "results.json").read_text())


def model(work: Path, name: str) -> Classifier:
    return robustft.load(work / name / "model.safetensors")


def scores(record: dict) -> list:
    return [record[key] for key in ("id", "ood", "ood_avg", "holdout")]


def zeroshot(work: Path) -> Classifier:
    return made_once(work, "zeroshot", "method=zeroshot")


def made_once(work: Path, name: str, *settings: str) -> Classifier:
    if not (work / name / "results.json").exists():
        do(work, name, *settings)
    return model(work, name)


def tuned(work: Path, seed: int = 0) -> str:
    """The file of a fine-tuned model; all start from the weights of seed 0."""
    first = work / "zeroshot" / "model.safetensors"
    zeroshot(work)
    made_once(work, f"tuned{seed}", "method=finetune", f"seed={seed}", "data.holdout_seed=0", f"init={first}")
    return str(work / f"tuned{seed}" / "model.safetensors")


@pytest.mark.slow
def test_wiseft_ends_reproduce_the_accuracies(work: Path) -> None:
    path = tuned(work)
    by_alpha = {a: do(work, f"wise{a}", "method=wiseft", f"checkpoint={path}", f"alpha={a}") for a in (0, 0.5, 1)}
    reference = json.loads((work / "zeroshot" / "results.json").read_text())
    finetuned = json.loads((work / "tuned0" / "results.json").read_text())
    assert scores(by_alpha[0]) == scores(reference) == list(by_alpha[0]["zeroshot"].values())
    assert scores(by_alpha[1]) == scores(finetuned) != scores(reference)
    assert same_bits(model(work, "wise0"), zeroshot(work))
    assert same_bits(model(work, "wise1"), model(work, "tuned0"))
    assert by_alpha[0.5]["alpha"] == 0.5 and by_alpha[0.5]["checkpoint"] == "model.safetensors"


@pytest.mark.slow
def test_soups(work: Path) -> None:
    paths = [tuned(work, seed) for seed in (0, 1, 2)]
    uniform = do(work, "uniform", "method=soup", f"checkpoints={work}/tuned*/model.safetensors")
    greedy = do(work, "greedy", "method=soup", f"checkpoints=[{','.join(paths)}]", "method.greedy=true")
    mean = sum(robustft.load(path).head.weight.detach().double() for path in paths) / 3
    assert torch.equal(model(work, "uniform").head.weight, mean.float())
    alone = [json.loads(Path(path).with_name("results.json").read_text())["holdout"]["top1"] for path in paths]
    assert greedy["holdout"]["top1"] >= max(alone)
    assert uniform["train_images_per_s"] is None


def test_linear_probe_against_plain_torch(work: Path) -> None:
    """The same order of images, AdamW, one-cycle schedule, clipping and selection, written out."""
    do(work, "probe", "method=linear_probe", "optimizer.lr=0.02")
    cfg = compose.compose_first(compose.parse([*SMALL, "method=linear_probe"]))
    data = make_data(cfg)
    data.setup()
    first = zeroshot(work)
    with torch.inference_mode():
        x = first.encode(first.preprocess.normalise(data.training_set().images))
    x, y = F.normalize(x.clone(), dim=-1), data.training_set().labels
    train, held = data.split
    head = deepcopy(first.head)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02, weight_decay=0)
    steps = len(train) // 24
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=2 * steps, pct_start=0.02)
    best, chosen = -1.0, None
    sampler = TrainSampler(train, 24, seed=0)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in torch.tensor(list(sampler)).view(steps, 24):
            F.cross_entropy(head(x[batch]), y[batch]).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        accuracy = float((head(x[held]).argmax(-1) == y[held]).float().mean())
        if accuracy > best:
            best, chosen = accuracy, deepcopy(head)
    probe = model(work, "probe")
    assert same_bits(probe.visual, first.visual)
    assert not torch.equal(probe.head.weight, first.head.weight)
    torch.testing.assert_close(probe.head.weight, chosen.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probe.head.bias, chosen.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_lpft_stages(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe leaves the backbone alone and is done once for all seeds that share the hold-out."""
    started: list[Classifier] = []

    def spy(self, *_) -> None:
        started.append(deepcopy(self.student))

    for stage in (LinearProbe, LPFT):
        monkeypatch.setattr(stage, "on_fit_start", spy)
    first = work / "zeroshot" / "model.safetensors"
    settings = ("method=lpft", "method.probe.epochs=2", f"init={first}", "data.holdout_seed=0")
    backbone = zeroshot(work).visual
    do(work, "lpft0", *settings)
    stage, second = started
    assert isinstance(stage, features.Probe) and same_bits(second.visual, backbone)
    assert not torch.equal(second.head.weight, zeroshot(work).head.weight)
    assert not same_bits(model(work, "lpft0").visual, backbone)
    (kept,) = (work / "cache" / "probes").glob("*.safetensors")
    assert torch.equal(load_file(kept)["weight"], second.head.weight)

    do(work, "lpft1", *settings, "seed=1")
    assert len(started) == 3 and same_bits(started[2], second)
    do(work, "lpft2", *settings, "method.probe.lr=0.5")
    assert len(started) == 5 and not same_bits(started[4], second)


@pytest.mark.slow
def test_features_are_encoded_once_and_only_those_that_are_needed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    step = features.Encoder.validation_step

    def spy(self, batch, *arguments):
        encoded.append(len(batch.images))
        return step(self, batch, *arguments)

    monkeypatch.setattr(features.Encoder, "validation_step", spy)
    settings = ("method=linear_probe", "model=tiny", "model.pretrained=null", "data.data_seed=5")
    do(work, "short", *settings, "trainer.max_steps=2")
    assert sum(encoded) == 2 * 24 + 40
    do(work, "whole", *settings)
    assert sum(encoded[1:]) == 160
    do(work, "again", *settings, "optimizer.lr=0.5")
    assert sum(encoded[1:]) == 160


@pytest.mark.slow
@pytest.mark.parametrize("mask", [(), ("mask=object", "fill=single")], ids=["factual", "counterfactual"])
def test_kd_with_any_teacher(work: Path, mask: tuple[str, ...]) -> None:
    path = tuned(work)
    if not (work / "teacher").exists():
        do(work, "teacher", "method=wiseft", f"checkpoint={path}", "alpha=0.3")
    teacher = f"teacher={work}/teacher/model.safetensors"
    record = do(work, f"kd{len(mask)}", "method=kd", "temperature=4", teacher, *mask)
    assert record["temperature"] == 4 and record["beta"] is not None
    assert (record["mask"] or {"kind": "none"})["kind"] == ("object" if mask else "none")
