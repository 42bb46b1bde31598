"""Out of memory: one line that says what would help. (On a device with memory of its own: tests/device, tests/gpu.)"""

from dataclasses import replace

import open_clip
import pytest
import torch

from robustft import experiment
from robustft.cli import checks, identity, resuming
from robustft.common import configs
from robustft.common.errors import UserError
from robustft.common.memory import enough_memory, is_out_of_memory, largest_that_fits
from robustft.experiment import make_training
from robustft.methods.finetune import Finetune
from robustft.models.tiny import tokenizer
from robustft.models.weights import create_clip
from robustft.models.zeroshot import text_rows
from robustft.training.method import Method
from robustft.training.trainer import make_trainer
from tests.small import composed, do, method_of, prepared, work  # noqa: F401 (a fixture)

SAID = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, ...)"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "numpy": MemoryError("Unable to allocate 4.00 TiB for an array"),
}


@pytest.mark.parametrize("said", SAID)
def test_is_known(said):
    assert is_out_of_memory(SAID[said])


def test_a_real_one_is_known():
    message = "out of memory while trying.*allocate.*Less is taken with a smaller number."
    with pytest.raises(UserError, match=message), enough_memory("trying", "a smaller number"):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_others_are_left_alone(error):
    with pytest.raises(type(error)) as caught, enough_memory("trying", "nothing"):
        raise error
    assert caught.value is error


def fails(error: Exception):
    def function(*_, **__):
        raise error

    return function


def test_in_training(work, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Finetune, "training_step", fails(SAID["cpu"]))
    helps = "accumulate_grad_batches=2: 16 images at a time now, or model.grad_checkpointing=true, or trainer.precision"
    with pytest.raises(UserError, match=f"while training .*{helps}=bf16.*, or a smaller data.batch_size") as caught:
        do(work / "training", "method=finetune")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    done = ("trainer.precision=bf16-mixed", "model.grad_checkpointing=true", "trainer.accumulate_grad_batches=16")
    with pytest.raises(UserError) as caught:  # what is done already is no advice
        do(work / "training", "method=finetune", *done)
    assert str(caught.value).endswith("Less is taken with a smaller data.batch_size.")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zeroshot", "finetune"])
def test_in_an_evaluation(work, monkeypatch, method):  # noqa: F811
    """Also in one that is part of the training."""
    if method == "finetune":
        do(work / "scores", "method=zeroshot", "seed=5")
        do(work / "first", "method=finetune", "trainer.max_steps=1", "seed=5")  # the scores are kept
    monkeypatch.setattr("robustft.evaluation.evaluator.Top1.update", fails(SAID["cuda"]))
    with pytest.raises(UserError, match="out of memory while evaluating .*a smaller data.eval_batch_size"):
        do(work / f"evaluation-{method}", f"method={method}", "seed=5")


def test_of_class_names(monkeypatch):
    monkeypatch.setattr(open_clip, "build_zero_shot_classifier", fails(SAID["cuda"]))
    with pytest.raises(UserError, match="while encoding the names of classes .*method=zeroshot trainer=cpu once"):
        text_rows(create_clip("tiny", "embedded", 0), tokenizer(), ["circle"], ["a {}."])


def test_the_gallery_leaves_no_traceback(work, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr("robustft.evaluation.gallery.look", fails(SAID["cuda"]))
    do(work / "gallery", "method=zeroshot")
    (said,) = [record for record in caplog.records if "the gallery failed" in record.getMessage()]
    assert said.getMessage() == "the gallery failed (out of memory); the results are complete without"
    assert not said.exc_info


def test_the_largest_that_fits():
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 4:
            raise SAID["cuda"]

    assert largest_that_fits([12, 6, 4, 3, 2], attempt) == 4 and tried == [12, 6, 4]
    assert largest_that_fits([12, 6], attempt) is None
    with pytest.raises(ValueError):
        largest_that_fits([2], fails(ValueError()))


def test_auto_is_one_micro_batch_on_a_cpu(work):  # noqa: F811
    auto, one = "trainer.accumulate_grad_batches=auto", "trainer.accumulate_grad_batches=1"
    record = do(work / "auto", "method=finetune", auto, "trainer.max_epochs=1")
    assert record["config"]["trainer"]["accumulate_grad_batches"] == 1
    assert one in resuming.saved_overrides(work / "auto") and auto not in resuming.saved_overrides(work / "auto")
    assert resuming.saved_config(work / "auto")["trainer"]["accumulate_grad_batches"] == 1
    cfg = composed("method=finetune", auto, "trainer.max_epochs=1")
    identity.resolve(cfg)
    assert not identity.differences(configs.plain(cfg), resuming.saved_config(work / "auto"))


def test_auto_is_for_one_device(work, monkeypatch):  # noqa: F811
    auto = "trainer.accumulate_grad_batches=auto"
    for two in ("2", "'2'"):
        with pytest.raises(UserError, match="auto tries one device, not 2: give a number"):
            checks.check(composed(auto, f"trainer.devices={two}"))
    two_found = {"devices": 2, "strategy": "ddp"}  # as trainer.devices=auto may find them
    monkeypatch.setattr(experiment, "make_trainer", lambda options, folder: make_trainer(options | two_found, folder))
    with pytest.raises(UserError, match="auto tries one device, and this run has 2"):
        do(work / "several", auto)


def test_tries_leave_everything_as_it_is(work, monkeypatch):  # noqa: F811
    """Weights, the teacher's too, and random streams; the steps are real ones."""
    from robustft.training import accumulation

    run = prepared(work / "tries")
    run.data.setup()
    method = method_of(run)
    student, teacher = method.student, method.teacher
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in (student, teacher)]
    drawn = torch.get_rng_state()
    seen = []
    step = Method.optimizer_step
    monkeypatch.setattr(Method, "optimizer_step", lambda self, *rest: (seen.append(self.student), step(self, *rest)))
    training = make_training(run.cfg, run, [])
    training = replace(training, trainer=training.trainer | {"precision": "bf16-mixed"})
    accumulation._two_steps(method, training, 4, 2)
    assert len(seen) == 2 and seen[0] is not student
    assert any(not torch.equal(value, before[0][key]) for key, value in seen[0].state_dict().items())
    for model, values in zip((student, teacher), before, strict=True):
        assert all(
            torch.equal(value, values[key]) and value.dtype == values[key].dtype
            for key, value in model.state_dict().items()
        )
    assert torch.equal(torch.get_rng_state(), drawn)
