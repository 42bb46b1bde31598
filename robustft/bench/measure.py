"""Time and peak memory of a training step."""

import ctypes
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from robustft.common.errors import UserError

Step = Callable[[], None]


def median_seconds(
    steps: Mapping[str, Step], rounds: int, device: str, progress: Callable[[str], None]
) -> dict[str, float]:
    """Median time of every step over ``rounds`` rounds; see ``seconds_by_round``."""
    taken = seconds_by_round(steps, rounds, device, progress)
    return {name: statistics.median(times) for name, times in taken.items()}


def seconds_by_round(
    steps: Mapping[str, Step], rounds: int, device: str, progress: Callable[[str], None], wall: bool = True
) -> dict[str, list[float]]:
    """Time of every step in each of ``rounds`` rounds, which are a step of every kind.

    What else the machine does, and its clock, then meets all of them alike; every other round goes backwards. A round
    before the first warms up.

    Args:
        wall: False: on a CPU, processor time of all threads, which other programs hardly lengthen.
    """
    clock = _cuda_seconds if device == "cuda" else _seconds if wall else _processor_seconds
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps)[:: -1 if number % 2 else 1]:
            progress(name)
            seconds = clock(steps[name])
            if number:
                taken[name].append(seconds)
    return taken


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _processor_seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _cuda_seconds(step: Step) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def peak_bytes(step: Step, device: str) -> int | None:
    """Most memory in use during a step, after one that warms up; None where it cannot be told.

    On CUDA what tensors take, models and optimiser included. On Linux what the process grows by during the step
    (resident memory, whoever allocated it), after what earlier steps had freed went back to the system; models and
    optimiser are not included, gradients are. The process must have done nothing but this.
    """
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    if not Path("/proc/self/clear_refs").exists():
        return None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    (kilobytes,) = re.findall(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def peak_bytes_apart(arguments: Sequence[str]) -> int | None:
    """``peak_bytes`` as a new process ``python -m robustft.bench ARGUMENTS`` prints it.

    Raises:
        UserError: the process failed, for want of memory perhaps.
    """
    done = subprocess.run([sys.executable, "-m", "robustft.bench", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"measuring memory failed (exit {done.returncode}): {done.stderr.strip()[-300:]}")
    said = done.stdout.split()[-1]
    return None if said == "None" else int(said)
