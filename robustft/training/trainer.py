"""Lightning's Trainer as the product makes it: its own loggers, callbacks and folder; precision and device by name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from robustft.common.allocator import keep_freed
from robustft.common.errors import UserError
from robustft.common.wording import first_line
from robustft.training.callbacks import progress
from robustft.training.lightning_private import connect, evaluate_on_every_device

AUTO = "auto"


def make_trainer(
    options: Mapping[str, Any],
    folder: Path,
    callbacks: Sequence[Callback] = (),
    loggers: list[Logger] | None = None,
) -> Trainer:
    """Lightning's Trainer with the product's loggers, callbacks and folder.

    Raises:
        UserError: Lightning does not take the options, or not on this machine.
    """
    if device_type(options["accelerator"]) == "cpu":
        keep_freed()
    bar = [progress()] if options["enable_progress_bar"] else []
    accumulate = options.get("accumulate_grad_batches", 1)
    chosen = dict(options) | {
        "precision": resolve_precision(options["precision"], options["accelerator"]),
        "accumulate_grad_batches": 1
        if accumulate == AUTO
        else accumulate,  # not known yet: robustft/training/accumulation.py
        "enable_checkpointing": False,  # robustft/training/checkpoints.py keeps what is needed
        "use_distributed_sampler": False,  # ours neither repeats nor drops images
        "num_sanity_val_steps": 0,
        "profiler": _profiler(options.get("profiler"), folder),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in bar),
    }
    try:
        made = Trainer(**chosen, callbacks=[*callbacks, *bar], logger=loggers or False, default_root_dir=folder)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {first_line(error)}") from error
    evaluate_on_every_device(made)
    return made


def agreement(trainer: Trainer) -> Callable[[bool], bool] | None:
    """Give what tells each process of a run whether all of them say yes; each has to ask, in the same order.

    What one process finds in a folder another may not find a moment later, or earlier.

    Returns:
        None: there is one process alone.
    """
    if trainer.world_size == 1:
        return None
    connect(trainer)
    return lambda yes: trainer.strategy.reduce_boolean_decision(yes, all=True)


def _profiler(kind: str | None, folder: Path) -> Profiler | None:
    """A profiler that writes ``fit-profile.txt`` and ``validate-profile.txt``; Lightning's own way is a log line."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if kind is None else kinds[kind](dirpath=folder, filename="profile")


def resolve_precision(precision: Any, accelerator: str) -> Any:
    """Lightning's name of a precision; ``auto`` is bf16-mixed on hardware that computes in bfloat16, else 32-true.

    Raises:
        UserError: the device does not compute in it.
    """
    kind = device_type(accelerator)
    if precision == "auto":
        computes = {"cuda": cuda_has_bf16, "cpu": cpu_has_bf16}.get(kind)
        return "bf16-mixed" if computes is not None and computes() else "32-true"
    name = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(str(precision), precision)
    if name == "16-mixed" and kind == "cpu":
        raise UserError(
            f"trainer.precision={precision}: CPUs do not train in float16. Use bf16-mixed or 32-true, or a GPU."
        )
    return name


def device_type(accelerator: str) -> str:
    """Say what ``trainer.accelerator`` computes on: cpu, cuda, mps ..."""
    here = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator == "cpu" or here is None else here.type


def cuda_has_bf16() -> bool:
    """Whether the GPU multiplies bfloat16 in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX); emulated it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
