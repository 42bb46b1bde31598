"""What numbers were measured on, as people call it."""

import os
import platform
import sys
from pathlib import Path


def cpu_name() -> str:
    """The processor's own name, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def has_accelerator() -> bool:
    """Whether there seems to be a GPU here, told without importing torch."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, either's under Windows' Linux
    return any(os.path.exists(path) for path in drivers) or (sys.platform, platform.machine()) == ("darwin", "arm64")


def device_name(accelerator: str = "auto") -> str:
    """The GPU that training takes, else the processor with the number of its cores.

    Args:
        accelerator: ``trainer.accelerator`` of the training.
    """
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of {cpu_name()}"
