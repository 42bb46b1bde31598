"""Locks between processes, on one machine or on several that share a file system, through `filelock`.

The system lifts the lock of a process that dies. Where a file system has no such locks (some network file systems) the
lock is a file that names its owner: on its owner's machine it is known when that one is no more.
"""

import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

log = logging.getLogger(__name__)

NOT_SUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}  # what `flock` says where there is none


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Nobody else, on this machine or another that sees the file, is in here for the same ``path``.

    Raises:
        BlockingIOError: somebody is, and ``wait`` is False.
        OSError: no file can be made beside ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquire(path, wait)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Hold a lock on ``path`` that says who has it: see ``owner``.

    Raises:
        BlockingIOError: another process has it; the message says which.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
        except BlockingIOError:
            raise BlockingIOError(_who(path)) from None
        since = f"{datetime.now():%Y-%m-%d %H:%M}"
        text = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})
        with suppress(OSError):  # only the name of the owner would be missing
            _record(path).write_text(text, "utf-8")
        try:
            yield
        finally:
            with suppress(OSError):
                _record(path).unlink(missing_ok=True)


def owner(path: Path) -> str | None:
    """Who has the lock on ``path`` (see ``owned``), in words; None: nobody, or its owner is no more."""
    if not any(file.exists() for file in (_hard(path), _soft(path))):
        return None
    try:
        with locked(path, wait=False):
            return None
    except BlockingIOError:
        return _who(path)
    except OSError:  # nobody can lock here, so nobody has
        return None


def here() -> str:
    """Name this process, as a part of file names."""
    return f"{socket.gethostname()}-{_numbering()}-{os.getpid()}"


def is_gone(name: str) -> bool:
    """Whether the process of that name (see ``here``) is no more.

    False where that cannot be told: it is another machine's, or the system does not say whose numbers are whose.
    """
    place, _, number = name.rpartition("-")
    if not _numbering() or place != here().rpartition("-")[0] or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        pass
    return False


@lru_cache
def _numbering() -> str:
    """Name those among whom a process's number means something: this machine since its start, in this container.

    Empty where the system does not tell. Hosts and containers may share a file system and a name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        inside = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {inside}".encode()).hexdigest()[:8]


def _acquire(path: Path, wait: bool) -> BaseFileLock:
    try:
        return _acquire_one(FileLock(_hard(path), fallback_to_soft=False), wait)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    _hard(path).unlink(missing_ok=True)
    return _acquire_one(SoftFileLock(_soft(path)), wait, timeout=0.2)  # the first try clears a dead owner's away


def _acquire_one(lock: BaseFileLock, wait: bool, timeout: float = 0) -> BaseFileLock:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        if not wait:
            raise BlockingIOError(f"another process has the lock {lock.lock_file}") from None
        log.info("waiting for another process that computes the same")
        lock.acquire(poll_interval=0.1)
    return lock


def _who(path: Path) -> str:
    soft = f" (if it is no more, delete {_soft(path)})" if _soft(path).exists() else ""
    try:
        record = json.loads(_record(path).read_text("utf-8"))
        return f"process {record['process']} on {record['host']} since {record['since']}{soft}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process{soft}"


def _hard(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _soft(path: Path) -> Path:
    return path.with_name(f"{path.name}.softlock")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")
