"""The step of ViT-B/32 on a GPU against that on the CPU, and what it must not do there."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from robustft.experiment import make_training
from tests.gpu import checks
from tests.methods.micro import same_bits
from tests.small import method_of, prepared, trained, work  # noqa: F401 (a fixture)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def no_waiting() -> Iterator[None]:
    """What makes the host wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", checks.TOLERANCES)
def test_step(precision):
    if precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    gradients, loss = checks.compare("vitb32", "cuda", precision)
    allowed, of_loss = checks.TOLERANCES[precision]
    assert gradients < allowed and loss < of_loss, (gradients, loss)


@pytest.mark.parametrize("precision", checks.TOLERANCES)
def test_the_step_does_not_wait(precision):
    checks.step("vitb32", "cuda", precision, around=no_waiting)


@pytest.mark.parametrize("kind", ["relevance", "gradcam"])
def test_maps(kind):
    here, there = (checks.maps("vitb32", device, kind) for device in ("cuda", "cpu"))
    torch.testing.assert_close(here, there, rtol=0, atol=1e-3)  # maps are in 0...1
    for threshold in (0.3, 0.5):
        sure = (there - threshold).abs() > 1e-3
        assert torch.equal((here > threshold)[sure], (there > threshold)[sure]) and sure.float().mean() > 0.9


@pytest.mark.parametrize("kind", ["random", "object", "context"])
@pytest.mark.parametrize("fill", ["none", "single", "multi"])
def test_masks_and_fills(kind, fill):
    """Random streams differ between devices; what is not random is the same, and the rest is what it has to be."""
    (pixels, mask, made), (_, expected, _) = (checks.samples(device, kind, fill) for device in ("cuda", "cpu"))
    if kind != "random":
        assert torch.equal(mask, expected)
    assert 0.2 < mask.float().mean() < 0.8
    kept = ~mask.view(-1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(pixels)
    assert torch.equal(made[kept], pixels[kept])
    if fill == "multi":
        assert (made != pixels)[~kept].float().mean() > 0.99
    assert all(torch.equal(*pair) for pair in zip(made, checks.samples("cuda", kind, fill)[2], strict=True))


class Waiting:
    """Turns the check on inside of the steps that do not log, Lightning's part of them included."""

    def __init__(self, steps: int) -> None:
        from lightning.pytorch import Callback

        class Check(Callback):
            def on_train_batch_start(self, trainer, *_):
                if 1 <= trainer.global_step < steps - 1:  # the first one warms up, the last one logs
                    torch.cuda.set_sync_debug_mode("error")

            def on_train_batch_end(self, *_):
                torch.cuda.set_sync_debug_mode("default")

            def on_exception(self, *_):
                torch.cuda.set_sync_debug_mode("default")

        self.callback = Check()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("settings", [(), ("method=finetune",), ("mask=random", "fill=none"), ("method=kd",)], ids=str)
def test_training_does_not_wait(work, precision, settings):  # noqa: F811
    steps = 5
    options = (f"trainer.max_steps={steps}", "trainer.log_every_n_steps=99", "data.batch_size=8")
    run = prepared(work / "waits", *options, *settings, "trainer=gpu", f"trainer.precision={precision}")
    assert run.device.type == "cuda"
    made = trained(run, watch=lambda *_: Waiting(steps).callback)
    assert not same_bits(made, run.zeroshot)
    assert {value.device.type for value in (*made.state_dict().values(), run.zeroshot.head.weight)} == {"cpu"}


def test_out_of_memory_is_one_line_and_a_micro_batch_is_found(work):  # noqa: F811
    """A batch for which this GPU has no memory: as much is taken away as it takes."""
    from robustft.common.errors import UserError
    from robustft.training.accumulation import micro_batches_that_fit

    settings = (
        "data.train_images=1100",
        "data.holdout=64",
        "data.batch_size=1024",
        "trainer=gpu",
        "trainer.max_steps=1",
    )
    run = prepared(work / "memory", *settings)
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**30 / total))  # 1 GiB
    try:
        with pytest.raises(UserError, match="out of memory while training.*accumulate_grad_batches=2"):
            trained(run)
        found = micro_batches_that_fit(method_of(run), make_training(run.cfg, run, []), least=2)
        assert 1 < found < 1024
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
