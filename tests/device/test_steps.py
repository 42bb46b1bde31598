"""The training step of every method with every mask, fill and map, on the device: the CPU's weights bit for bit, and no
waiting for the device between the steps that log."""

import itertools
from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from robustft.bench.steps import MORE, VARIANTS, Bench
from robustft.counterfactual import cam, fill
from robustft.data import sampling
from robustft.experiment import Run
from tests.device import remote
from tests.methods.micro import same_bits
from tests.small import prepared, work  # noqa: F401 (a fixture)

SETTINGS = ("data.batch_size=4", "trainer.max_steps=4", "trainer.log_every_n_steps=3", "method=kd", "mask=none")
MAPPED = [
    {"kind": kind, "threshold": 0.3, "rate": None, "cam": cam, "source": source, "layers": layers}
    for kind, (cam, layers), source in itertools.product(
        ("object", "context"), (("relevance", None), ("relevance", 1), ("gradcam", None)), ("student", "teacher")
    )
]
NO_MAP = dict.fromkeys(("threshold", "rate", "cam", "source", "layers"))
RANDOM = {**NO_MAP, "kind": "random", "rate": 0.5}
NONE = {**NO_MAP, "kind": "none"}
MASKED = list(itertools.product([*MAPPED, RANDOM], ("none", "single", "multi")))
COMBINATIONS = [("finetune", NONE, "none")]
COMBINATIONS += [(method, mask, fill) for method in ("counterfactual", "kd") for mask, fill in [(NONE, "none"), *MASKED]]


def name(combination: Any) -> str:
    method, mask, fill = combination
    parts = (method, mask["kind"], fill, mask["cam"], mask["layers"], mask["source"])
    return "-".join(str(part) for part in parts if part)


class Waits(Callback):
    """How often the host had waited for the device at the end of each step."""

    def __init__(self, waits: dict[str, int]) -> None:
        self.waits, self.until = waits, [{}]

    def on_train_batch_end(self, *_: Any) -> None:
        self.until.append(dict(self.waits))

    def of_step(self, step: int) -> dict[str, int]:
        return {k: n - self.until[step - 1].get(k, 0) for k, n in self.until[step].items() if n != self.until[step - 1].get(k, 0)}


@pytest.fixture(scope="module")
def base(work) -> Run:  # noqa: F811
    run = prepared(work / "steps", *SETTINGS)
    run.data.setup()
    assert run.zeroshot.head.weight.device.type == "cpu"
    return run


def variant(base: Run, combination: Any, **trainer: Any) -> Run:
    """A run with the data and the zero-shot model of ``base``."""
    method, mask, fill = combination
    cfg = deepcopy(base.cfg)
    cfg.mask, cfg.fill.kind = mask, fill
    cfg.beta = None if method == "finetune" else 1.0
    cfg.trainer = OmegaConf.merge(cfg.trainer, trainer)
    run = Run(cfg)
    run.zeroshot, run.data = base.zeroshot, base.data
    run.loggers = []
    return run


def trained(run: Run, combination: Any) -> tuple[Any, Waits]:
    temperature = 10.0 if combination[0] == "kd" else None
    with remote.syncs() as waits:
        recorder = Waits(waits)
        model = run.train(run.student(), run.distillation(temperature), watch=lambda steps, done: recorder).model
    return model, recorder


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name)
def test_step(base, combination):
    here, waits = trained(variant(base, combination, accelerator="auto"), combination)
    assert not waits.of_step(2), "the host waits for the device in a step that does not log"
    assert same_bits(here, trained(variant(base, combination), combination)[0])
    assert not same_bits(here, base.zeroshot)
    assert {value.device.type for value in base.zeroshot.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_algorithm": "value"}], ids=str)
def test_step_otherwise(base, options):
    combination = ("counterfactual", MAPPED[0], "single")
    made, waits = trained(variant(base, combination, accelerator="auto", **options), combination)
    assert not waits.of_step(2 * options.get("accumulate_grad_batches", 1))
    assert {value.dtype for value in made.state_dict().values()} == {torch.float32}
    if "precision" not in options:  # attention in bfloat16 is another function on CPUs
        assert same_bits(made, trained(variant(base, combination, **options), combination)[0])


def test_float16(base):
    """Its gradients are scaled, and torch looks at every step whether they overflowed: it waits."""
    combination = ("counterfactual", MAPPED[0], "single")
    made, _ = trained(variant(base, combination, accelerator="auto", precision="16-mixed"), combination)
    assert all(value.isfinite().all() for value in made.parameters()) and not same_bits(made, base.zeroshot)


def test_activation_checkpointing(base):
    combination = ("counterfactual", MAPPED[0], "single")
    run = variant(base, combination, accelerator="auto")
    run.cfg.model.grad_checkpointing = True
    made, waits = trained(run, combination)
    assert not waits.of_step(2)
    assert same_bits(made, trained(variant(base, combination), combination)[0])


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


def on_cpu(make: Any) -> Any:
    """The function with its random numbers drawn on the CPU."""
    return lambda *keys, device=None: make(*keys)


FAULTS = {
    "generator_on_the_cpu": (sampling, "generator"),
    "permutation_on_the_cpu": (fill, "single_source"),
    "teacher_left_on_the_cpu": None,
    "a_map_on_the_cpu": (cam, "_normalise"),
}
