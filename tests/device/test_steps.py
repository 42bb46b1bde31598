"""The training step of every method with every mask, fill and map, on the device: the CPU's weights bit for bit, and no
waiting for the device between the steps that log."""

import itertools
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from robustft.bench.names import MORE, VARIANTS
from robustft.bench.steps import Bench
from robustft.common.randomness import generator
from robustft.data.sets import Batch
from robustft.experiment import make_training, options
from robustft.inputs import Inputs
from robustft.methods.counterfactual import CounterfactualFinetune
from robustft.methods.finetune import Finetune
from robustft.training.constraint import Constraint
from robustft.training.loop import train
from robustft.training.recipe import Recipe
from robustft.training.schedules import warmup_cosine
from robustft.training.trainer import make_trainer
from tests.counterfactual.test_towers import SIDE, classifier, vit
from tests.device import remote
from tests.methods.micro import same_bits
from tests.small import composed, prepared, work  # noqa: F401 (a fixture)
from tests.small import trained as small_trained

SETTINGS = (
    "data.batch_size=4",
    "trainer.max_steps=2",
    "trainer.log_every_n_steps=9",
    "trainer.enable_checkpointing=false",
    "method=kd",
    "mask=none",
)
MAPPED = [
    {"kind": kind, "threshold": 0.3, "rate": None, "cam": cam, "source": source, "layers": None}
    for kind, cam, source in itertools.product(("object", "context"), ("relevance", "gradcam"), ("student", "teacher"))
]
LAST_LAYER = MAPPED[0] | {"layers": 1}
NO_MAP = dict.fromkeys(("threshold", "rate", "cam", "source", "layers"))
RANDOM = {**NO_MAP, "kind": "random", "rate": 0.5}
NONE = {**NO_MAP, "kind": "none"}
MASKED = list(itertools.product([*MAPPED, RANDOM], ("none", "single", "multi")))
COMBINATIONS = [("finetune", NONE, "none"), ("counterfactual", LAST_LAYER, "single")]
COMBINATIONS += [
    (method, mask, fill) for method in ("counterfactual", "kd") for mask, fill in [(NONE, "none"), *MASKED]
]
THE_METHOD = ("counterfactual", MAPPED[0], "single")


def name(combination: Any) -> str:
    method, mask, fill = combination
    parts = (method, mask["kind"], fill, mask["cam"], mask["layers"], mask["source"])
    return "-".join(str(part) for part in parts if part)


class Waits(Callback):
    """How often the host has waited for the device by the end of each micro-batch."""

    def __init__(self, waits: Counter[str]) -> None:
        self.waits, self.until = waits, []

    def on_train_batch_start(self, *_: Any) -> None:
        self.until = self.until or [self.waits.copy()]

    def on_train_batch_end(self, *_: Any) -> None:
        self.until.append(self.waits.copy())

    def of(self, micro_batch: int) -> Counter[str]:
        return self.until[micro_batch] - self.until[micro_batch - 1]


@pytest.fixture(scope="module")
def base(work) -> Inputs:  # noqa: F811
    run = prepared(work / "steps", *SETTINGS)
    run.data.setup()
    trained(variant(run, THE_METHOD, accelerator="auto"))  # what is copied to the device once, is there
    return run


def variant(base: Inputs, combination: Any, **trainer: Any) -> Inputs:
    """A run with the data and the zero-shot model of ``base``."""
    method, mask, fill = combination
    cfg = deepcopy(base.cfg)
    cfg.method = composed(f"method={method}").method
    cfg.mask, cfg.fill.kind = mask, fill
    cfg.beta = None if method == "finetune" else 1.0
    cfg.trainer = OmegaConf.merge(cfg.trainer, trainer)
    run = Inputs(cfg, base.data, make_trainer(options(cfg), base.folder).strategy.root_device)
    run.zeroshot = base.zeroshot
    return run


def trained(run: Inputs) -> tuple[Any, Waits]:
    with remote.syncs() as waits:
        recorder = Waits(waits)
        model = small_trained(run, watch=lambda steps, done: recorder)
    return model, recorder


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name)
def test_step(base, combination):
    here, waits = trained(variant(base, combination, accelerator="auto"))
    assert not waits.of(1) and waits.of(2), "of two steps the second logs"
    assert same_bits(here, trained(variant(base, combination))[0])
    assert not same_bits(here, base.zeroshot)
    assert {value.device.type for value in base.zeroshot.state_dict().values()} == {"cpu"}


OTHERWISE = [
    {"accumulate_grad_batches": 2},
    {"precision": "bf16-mixed"},
    {"gradient_clip_algorithm": "value"},
    {"enable_progress_bar": True},
]


@pytest.mark.parametrize("options", OTHERWISE, ids=str)
def test_step_otherwise(base, options):
    options = {"max_steps": 4, "log_every_n_steps": 4, **options}
    made, waits = trained(variant(base, THE_METHOD, accelerator="auto", **options))
    assert not waits.of(1) and not waits.of(2) and not waits.of(3) and waits.until[-1]
    assert {value.dtype for value in made.state_dict().values()} == {torch.float32}
    if "precision" not in options:  # attention in bfloat16 is another function on CPUs
        assert same_bits(made, trained(variant(base, THE_METHOD, **options))[0])


def test_float16(base):
    """Its gradients are scaled, and torch looks at every step whether they overflowed: it waits."""
    made, _ = trained(variant(base, THE_METHOD, accelerator="auto", precision="16-mixed"))
    assert all(value.isfinite().all() for value in made.parameters()) and not same_bits(made, base.zeroshot)


def test_activation_checkpointing(base):
    run = variant(base, THE_METHOD, accelerator="auto")
    run.cfg.model.grad_checkpointing = True
    made, waits = trained(run)
    assert not waits.of(1)
    assert same_bits(made, trained(variant(base, THE_METHOD))[0])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_bench(precision):
    bench = Bench("tiny", 4, precision, remote.NAME)
    assert bench.check() < 1e-3
    for kind in (*VARIANTS, *MORE):
        step = bench.step(kind)
        step()
        with remote.syncs() as waits:
            step()
        assert not waits, kind


POOLS = ("token", "map", "avg")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("mask", [MAPPED[0], MAPPED[2], {**MAPPED[0], "source": "teacher"}, RANDOM], ids=str)
@pytest.mark.parametrize("fill", ["none", "single"])
def test_timm_towers(pool, mask, fill):
    """Every way of pooling: maps that start there, patches hidden and left out, without a wait."""
    found = []
    for place in ("cpu", remote.NAME):
        student, teacher = (classifier(vit(pool)).to(place) for _ in range(2))
        method = CounterfactualFinetune(student, teacher, beta=1.0, mask=mask, fill=fill)
        method.random = lambda _, place=place: generator("test", 3, device=place)
        random = torch.Generator().manual_seed(1)
        images = torch.randn(4, 3, SIDE, SIDE, generator=random).to(place)
        batch = Batch(images, torch.tensor([0, 3, 1, 1]).to(place), torch.arange(4).to(place))
        method.training_step(batch, 0).backward()  # what is copied once is there now
        method.zero_grad()
        with remote.syncs() as waits:
            method.training_step(batch, 0).backward()
        assert not waits
        found.append([weight.grad.cpu() for weight in student.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Ball(Constraint):
    """A projection and a term of the gradient."""

    def add_gradient(self) -> None:
        for weight, start in self.pairs:
            weight.grad.add_(weight.detach() - start, alpha=0.1)

    def project(self) -> None:
        with torch.no_grad():
            for weight, start in self.pairs:
                move = weight - start
                weight.copy_(start + move * (0.01 / move.norm().clamp(min=0.01)))


class Averaged(Finetune):
    """Is evaluated and left as a moving average."""

    def __init__(self, student: Any) -> None:
        super().__init__(student)
        self.average = deepcopy(student).requires_grad_(False)

    def after_step(self) -> None:
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(weight, 0.5)

    def classifier(self) -> Any:
        return self.average


def test_constraints_schedules_and_averages(base):
    """What users bring, on the device: the CPU's weights bit for bit, no waiting between the steps that log."""
    found = []
    for accelerator in ("cpu", "auto"):
        run = variant(base, ("finetune", NONE, "none"), accelerator=accelerator)
        recipe = Recipe({"lr": 1e-3, "weight_decay": 0.1, "warmup": 1}, warmup_cosine)
        with remote.syncs() as waits:
            recorder = Waits(waits)
            training = replace(
                make_training(run.cfg, run, []),
                recipe=recipe,
                constraints=[Ball(run.zeroshot)],
                watch=lambda *_, recorder=recorder: recorder,
            )
            found.append(train(Averaged(run.student()), training).model)
        assert not recorder.of(1)
    assert same_bits(*found) and not same_bits(found[0], base.zeroshot)


FAULTS = {
    "random numbers of the CPU": ("robustft.training.method.generator", lambda *keys, device: generator(*keys)),
    "permutation on the CPU": ("robustft.counterfactual.fill.single_source", lambda n, random: torch.randperm(n)),
    "zeros without a device": (
        "robustft.counterfactual.fill.replace_patches",
        lambda images, mask, source, size: torch.zeros(images.shape) + images,
    ),
    "teacher left on the CPU": ("robustft.training.method.Method.on_fit_start", lambda self: None),
    "map brought to the CPU": ("robustft.counterfactual.cam._normalise", lambda cam: cam.cpu()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(base, fault, monkeypatch):
    """That these tests are tests: what a GPU refuses is refused here."""
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(remote.DevicesMixed, match="same device|device type for generator"):
        trained(variant(base, THE_METHOD, accelerator="auto"))


WAITS = {
    "a number read in the step": ("robustft.counterfactual.cam._normalise", lambda cam: cam / float(cam.max())),
    "a constant copied in the step": (
        "robustft.counterfactual.cam._normalise",
        lambda cam: cam / torch.tensor([2.0], device=cam.device),
    ),
    "pixels chosen by a mask": ("robustft.counterfactual.cam._normalise", lambda cam: cam + cam[cam > 0].sum()),
}


@pytest.mark.parametrize("fault", WAITS)
def test_waits_are_found(base, fault, monkeypatch):
    monkeypatch.setattr(*WAITS[fault])
    _, waits = trained(variant(base, THE_METHOD, accelerator="auto"))
    assert waits.of(1)
