"""Locks between processes, with and without those of the operating system."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustft.common import locks
from tests.small import ROOT

HOLD = """
import sys, time
from pathlib import Path
import fcntl, errno
if sys.argv[2] != "0":
    def flock(*_):
        raise OSError(int(sys.argv[2]), "no locks here")
    fcntl.flock = flock
from robustft.common import locks
with locks.owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(path: Path, number: int = 0) -> "subprocess.Popen[str]":
    """Another process that has the lock; with ``number``, `flock` fails with it there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", HOLD, str(path), str(number)]
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def no_locks(number: int):
    def flock(*_: object) -> None:
        raise OSError(number, "no locks here")

    return flock


@pytest.mark.parametrize("number", [0, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_lock_is_its_owners_until_it_is_no_more(tmp_path, monkeypatch, number):
    if number:
        monkeypatch.setattr(fcntl, "flock", no_locks(number))
    path = tmp_path / "folder"
    other = hold(path, number)
    who = locks.owner(path)
    assert who is not None and who.startswith(f"process {other.pid} on {socket.gethostname()} since 20")
    assert ("if it is no more, delete" in who) == bool(number)
    with pytest.raises(BlockingIOError, match=f"process {other.pid} on"), locks.owned(path):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    end = time.monotonic() + 10
    while locks.owner(path) is not None:
        assert time.monotonic() < end
    with locks.owned(path):
        assert locks.owner(path) is not None
    assert locks.owner(path) is None


def test_whoever_waits_gets_the_lock(tmp_path):
    other = hold(tmp_path / "folder")
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {other.pid}"])
    with locks.locked(tmp_path / "folder"):
        assert other.wait() == -signal.SIGKILL
    killer.wait()


def test_a_folder_that_nobody_has_worked_in_stays_empty(tmp_path):
    assert locks.owner(tmp_path / "folder") is None and not list(tmp_path.iterdir())
