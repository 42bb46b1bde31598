"""A teacher that moves, and an average as the result: against plain torch, and through the whole run."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from robustft.components import make_data
from robustft.data.sampling import TrainSampler
from robustft.experiment import make_training
from robustft.training.loop import train
from robustft.training.moving import MovingAverage
from tests.methods.micro import same_bits
from tests.small import do, method_of, prepared, trained, work  # noqa: F401 (a fixture)

RULES = {
    "moving=ema moving.decay=0.7": lambda k, steps: 0.3,
    "moving=trajectory": lambda k, steps: density(k + 1, steps) / sum(density(i, steps) for i in range(k + 2)),
}


def density(k: int, steps: int) -> float:
    x = (k + 0.5) / (steps + 1)
    return (x * (1 - x)) ** -0.5


def real(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Without the biases of keys: their gradient is zero but for rounding, which Adam takes for a direction."""
    return weight.view(3, -1)[::2] if name.endswith("in_proj_bias") else weight


@pytest.mark.parametrize("moving", RULES)
def test_distillation_from_a_moving_teacher_against_plain_torch(work, moving):  # noqa: F811
    """Two epochs of three steps, each of two micro-batches, written out."""
    rule = RULES[moving]
    settings = ("method=kd", "beta=0.5", "temperature=2", "data.holdout=0", "data.train_images=48", *moving.split())
    run = prepared(work / moving.replace(" ", "_"), *settings, "trainer.accumulate_grad_batches=2")
    ours = trained(run)
    student = run["student"]
    teacher = deepcopy(student).requires_grad_(False)
    data = make_data(run.cfg)
    data.setup()
    pixels, labels = data.training_set().images, data.training_set().labels
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=6, pct_start=0.02)
    sampler, k = TrainSampler(torch.arange(48), 16, seed=0), 0
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in torch.tensor(list(sampler)).view(3, 16):
            x, y = student.normalise(pixels[batch]), labels[batch]
            logits, target = student(x), teacher(x)
            kl = F.kl_div((logits / 2).log_softmax(1), (target / 2).softmax(1), reduction="batchmean")
            (F.cross_entropy(logits, y) + 0.5 * 4 * kl).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            for mean, weight in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.data += rule(k, 6) * (weight.detach() - mean)
            k += 1
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(real(ours.state_dict()[name], name), real(weight, name), rtol=1e-3, atol=2e-5)
    state = torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"]
    for name, mean in teacher.state_dict().items():
        found = state[f"moving_average.model.{name}"]
        torch.testing.assert_close(real(found, name), real(mean, name), rtol=1e-3, atol=1e-5)
    assert state["moving_average._extra_state"] == 6


@pytest.mark.parametrize(
    "settings",
    [
        ("method=finetune", "result=average"),
        ("method=kd", "result=average"),
        ("method=counterfactual", "mask=object", "fill=single"),
        ("method=counterfactual", "mask=context", "fill=none", "mask.source=teacher", "result=average"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_runs_with_averages(work, settings):  # noqa: F811
    """They are evaluated, saved and resumed, and differ from those without."""
    folder = work / "-".join(settings).replace("=", "")
    record = do(folder, *settings, "moving=ema", "moving.decay=0.8", "data.holdout=0")
    assert record["settings"]["moving.decay"] == 0.8
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    final = load_file(folder / "model.safetensors")
    kept = "moving_average.model" if "result=average" in settings else "model"
    other = "model" if "result=average" in settings else "moving_average.model"
    assert all(torch.equal(value, state[f"{kept}.{name}"]) for name, value in final.items())
    assert not torch.equal(final["visual.proj"], state[f"{other}.visual.proj"])


@pytest.mark.slow
def test_an_average_that_does_not_move_is_the_teacher_bit_for_bit(work):  # noqa: F811
    """And one that only results from the training leaves the training as it is."""
    plain = do(work / "plain", "method=kd")
    result = do(work / "result", "method=kd", "moving=ema", "moving.teaches=false", "result=average", "moving.decay=0")
    assert plain["holdout"] == result["holdout"]
    one, other = (load_file(work / name / "model.safetensors") for name in ("plain", "result"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    run = prepared(work / "still", "method=kd", "moving=ema")
    method, twin = method_of(run), method_of(run)
    from robustft.training.moving import Moving

    method.keep_average(Moving(lambda step, steps: 0.0), 3)
    assert method.teacher is method.moving_average.model and same_bits(method.teacher, twin.teacher)
    for _ in range(3):
        method.moving_average.update(method.student)
    assert same_bits(method.teacher, twin.teacher)


def test_a_step_that_float16_leaves_out_moves_nothing(work, monkeypatch):  # noqa: F811
    """Infinite gradients: a stand-in for the scaler, which CPUs do not have, leaves out the second of three."""
    from lightning.pytorch.plugins import Precision

    steps: list[int] = []
    take = Precision.optimizer_step

    def scaled(self, optimizer, model, closure, **more):
        steps.append(len(steps))
        if steps[-1] == 1:
            self._wrap_closure(model, optimizer, closure)  # loss and gradients, and no step
            return None
        return take(self, optimizer, model, closure, **more)

    monkeypatch.setattr(Precision, "scaler", object(), raising=False)
    monkeypatch.setattr(Precision, "optimizer_step", scaled)
    seen = []
    monkeypatch.setattr(MovingAverage, "update", lambda self, student: seen.append(self.done))
    run = prepared(work / "left_out", "method=kd", "moving=ema", "data.holdout=0", "trainer.max_steps=3")
    method = method_of(run)
    method.after_step = lambda: seen.append([p.grad for p in method.student.parameters() if p.grad is not None])
    train(method, make_training(run.cfg, run, []))
    assert steps == [0, 1, 2] and seen == [0, [], 0, []]  # an update and fresh gradients, of two steps
