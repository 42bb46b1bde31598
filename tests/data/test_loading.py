"""Batches on their way from worker processes: little shared memory, and processes that are killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, SequentialSampler

from robustft.common.errors import user_error
from robustft.data import loading
from robustft.data.loading import handed_over, make_loader
from robustft.data.sets import Batch
from tests.small import ROOT


class Pictures(Dataset):
    """Pixels that tell the image; ``dies`` is the signal that image 3 sends to the process that fetches it."""

    labels = torch.arange(64)

    def __init__(self, dies: int | None = None) -> None:
        self.dies = dies

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int):
        if self.dies is not None and index == 3:
            os.kill(os.getpid(), self.dies)
        return torch.full((3, 48, 48), index, dtype=torch.uint8), index, index

    def key(self, index: int) -> str:
        return str(index)

    def identity(self) -> str:
        return "pictures"


def loader(pictures: Pictures, **options) -> loading.Loader:
    return make_loader(pictures, SequentialSampler(pictures), 32, **options)


def batch() -> Batch:
    return Batch(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), torch.arange(4))


def room(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    """A stand-in for /dev/shm, sizes in bytes. Worker processes are forked and see it too."""
    found = SimpleNamespace(f_bavail=free, f_blocks=total, f_frsize=1)
    monkeypatch.setattr(loading.os, "statvfs", lambda path: found)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm here")
@pytest.mark.parametrize(("total", "free", "shared"), [(10_000, 10_000, True), (10_000, 5_500, False), (0, 0, False)])
def test_half_of_the_shared_memory_is_for_others(monkeypatch, total: int, free: int, shared: bool) -> None:
    room(monkeypatch, total, free)
    handed = handed_over(batch())
    assert isinstance(handed.images, torch.Tensor if shared else np.ndarray)
    if shared:
        assert all(part.is_shared() for part in handed)
    assert all(np.array_equal(one, other) for one, other in zip(handed, batch(), strict=True))


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm here")
def test_memory_that_is_gone_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 10_000, 10_000)

    def fails(_: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fails)
    assert isinstance(handed_over(batch()).images, np.ndarray)


@pytest.mark.parametrize("persistent", [True, False])
def test_batches_are_the_same_however_they_come(monkeypatch, caplog, persistent: bool) -> None:
    room(monkeypatch, 0, 0)
    loading._say_that_room_is_short.cache_clear()
    here, there = loader(Pictures(), num_workers=0), loader(Pictures(), num_workers=2, persistent=persistent)
    with caplog.at_level("INFO"):
        for _ in range(2):
            for one, other in zip(here, there, strict=True):
                assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))
    if os.path.isdir("/dev/shm"):
        (said,) = [record.getMessage() for record in caplog.records]
        assert "--shm-size" in said and "data.num_workers=0" in said and "\n" not in said


SCRIPT = """
import torch
from torch.utils.data import SequentialSampler
from tests.data.test_loading import Pictures, loader
first, second = (loader(Pictures(), num_workers=2, persistent=True) for _ in range(2))
for one, other in zip(first, second):  # alive at once, like training and evaluation
    assert torch.equal(one.images, other.images) and int(one.images[5, 0, 0, 0]) == int(one.labels[5])
    print(len(one.images))
"""
can_mount = shutil.which("unshare") and not subprocess.run(
    ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True
).returncode  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not can_mount, reason="needs the right to mount a small /dev/shm (root on Linux)")
def test_a_container_with_little_shared_memory(tmp_path: Path) -> None:
    """The batches are larger than all of it."""
    line = f"mount -t tmpfs -o size=256k tmpfs /dev/shm && exec {sys.executable} -c '{SCRIPT}'"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        ["unshare", "-m", "sh", "-c", line], env=environment, capture_output=True, text=True, timeout=100
    )
    assert answer.returncode == 0 and answer.stdout.split() == ["32", "32"], answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "memory is full"), (signal.SIGBUS, "--shm-size")])
def test_a_killed_loader_process_is_one_line(number: int, words: str, heard: bool) -> None:
    """Also where another library has taken the signal by which torch learns of it."""
    list(loader(Pictures(), num_workers=1))  # torch's handler is there now
    before = signal.getsignal(signal.SIGCHLD)
    if not heard:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        _killed(number, words)
    finally:
        signal.signal(signal.SIGCHLD, before)


def _killed(number: int, words: str) -> None:
    started, message = time.monotonic(), None
    try:
        list(loader(Pictures(number), num_workers=2))
    except RuntimeError as error:  # pytest.raises would keep the workers alive: they take 5 s each to give up
        message = user_error(error)
    assert message is not None and words in str(message) and "data.num_workers=0" in str(message)
    assert "\n" not in str(message) and time.monotonic() - started < 30
