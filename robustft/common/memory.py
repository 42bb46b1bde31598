"""Where memory ends: one line that says what would help, and a micro-batch that fits."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from robustft.common.errors import UserError
from robustft.common.wording import first_line

ALLOCATORS = ("out of memory", "alloc_failed", "can't allocate memory")  # of CUDA and MPS, cuBLAS, the CPU
EVALUATION = "a smaller data.eval_batch_size"


@contextmanager
def enough_memory(doing: str, *advice: str) -> Iterator[None]:
    """Make one line of an allocation that fails in here.

    Args:
        doing: what needs the memory: "training", "evaluating".
        advice: settings that would take less, most helpful first.

    Raises:
        UserError: names them.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        evaluating = doing == "training" and _called(error, "validation_step")
        what, helps = ("evaluating", [EVALUATION]) if evaluating else (doing, list(advice))
        wanted = f" ({first_line(error)})" if str(error) else ""
        raise UserError(f"out of memory while {what}{wanted}. Less is taken with {', or '.join(helps)}.") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in ALLOCATORS)


def training_advice(trainer: Any, student: Any, batch_size: int) -> list[str]:
    """Say what would take less memory than a training with these settings.

    Args:
        trainer: Lightning's.
        student: the ``Classifier`` that is trained; a probe has no image tower.
        batch_size: images per optimiser step, over all devices.
    """
    at_once = batch_size // (trainer.world_size * trainer.accumulate_grad_batches)
    choose = " (or auto)" if trainer.world_size == 1 and trainer.strategy.root_device.type != "cpu" else ""
    parts = f"trainer.accumulate_grad_batches={2 * trainer.accumulate_grad_batches}{choose}"
    advice = [f"{parts}: {at_once} images at a time now"] if at_once > 1 else []
    if hasattr(student, "visual"):
        advice += [] if student.tower.checkpoints else ["model.grad_checkpointing=true"]
        advice += ["trainer.precision=bf16-mixed"] if trainer.precision == "32-true" else []
    return [*advice, "a smaller data.batch_size"]


def largest_that_fits(sizes: Sequence[int], attempt: Callable[[int], None]) -> int | None:
    """Find the first of ``sizes`` that ``attempt`` does not run out of memory with; None: it does with all of them."""
    for size in sizes:
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return size
        finally:
            release()
    return None


def release() -> None:
    """Give back what nobody holds any more, so that it can be had for something else."""
    gc.collect()
    if torch.accelerator.is_available():
        with suppress(RuntimeError):  # what is no caching allocator has nothing to give back
            torch.accelerator.empty_cache()


def _called(error: BaseException, function: str) -> bool:
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == function:
            return True
        traceback = traceback.tb_next
    return False
