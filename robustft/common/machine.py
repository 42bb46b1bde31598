"""What numbers were measured on, as people call it."""

import os
import platform
import re
import sys
from pathlib import Path

from robustft.common.errors import UserError


def cpu_name() -> str:
    """The processor's own name, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def has_accelerator() -> bool:
    """Whether there seems to be a GPU here, told without importing torch."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, either's under Windows' Linux
    return any(os.path.exists(path) for path in drivers) or (sys.platform, platform.machine()) == ("darwin", "arm64")


def refuse_device(typed: str | None) -> None:
    """Refuse what no device is called, without importing torch, which knows what is here.

    Args:
        typed: behind --device; None: the best one is taken.

    Raises:
        UserError: says how devices are called.
    """
    if typed is not None and not re.fullmatch(r"[a-z]+(:\d+)?", typed):
        raise UserError(f"--device={typed}: not here. Expected cpu, cuda, cuda:1, mps")


def device_name(accelerator: str = "auto") -> str:
    """The GPU that training takes, else the processor with the number of its cores.

    Args:
        accelerator: ``trainer.accelerator`` of the training.
    """
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of {cpu_name()}"


def missing_devices(accelerator: str, count: int | None = None) -> str | None:
    """What this machine lacks of the devices that are asked for, in words; None: they are there.

    Args:
        accelerator: ``trainer.accelerator``; for auto and cpu nothing is asked, and torch is not imported.
        count: how many; None: at least one.

    Example:
        >>> missing_devices("cpu") is None
        True
    """
    if accelerator in ("auto", "cpu"):
        return None
    import torch

    cuda = torch.cuda.device_count() if accelerator != "mps" and torch.cuda.is_available() else 0
    found = cuda or int(accelerator != "cuda" and torch.backends.mps.is_available())
    if not found:
        built = "" if accelerator == "mps" or torch.backends.cuda.is_built() else ", which was built without CUDA"
        return f"PyTorch {torch.__version__}{built} finds no such device here"
    return f"there are {found} of {count} such devices here" if count is not None and count > found else None
