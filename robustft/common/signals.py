"""The signals that ask a run to stop: Ctrl-C, SIGTERM, and SIGHUP, which a terminal that is closed sends."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def stopping(interrupt: bool = True) -> list[signal.Signals]:
    """Name the signals that this process may take as a wish to stop.

    Those that were ignored when it started stay ignored: SIGHUP under nohup, Ctrl-C in the background of a script,
    both in a worker whose parent passes them on. Windows has no SIGHUP.

    Args:
        interrupt: Ctrl-C (SIGINT) too.
    """
    names = ["SIGINT"] * interrupt + ["SIGTERM", "SIGHUP"]
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def handled(handler: Handler, interrupt: bool = False) -> Iterator[None]:
    """Let ``handler`` receive the signals of `stopping` in the main thread, as long as the block lasts."""
    before = {number: signal.signal(number, handler) for number in stopping(interrupt)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def leave_to_parent() -> None:
    """Ignore what a terminal sends to all its processes at once: the parent decides what becomes of this one."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def start_loader_worker(_number: int) -> None:
    """Leave the end of a loader's process to the run: it needs images to the end of its step.

    Whoever stops a run often signals all its processes (a terminal, ``timeout``, SLURM), and a worker that dies takes
    the run with it. SIGTERM is also how a worker is ended that does not end by itself: it works in the end.
    """
    leave_to_parent()
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))


def say(text: str) -> None:
    """Write to standard error from within a signal handler, where log and print are not safe."""
    with suppress(OSError):  # whoever read it may have got the signal too
        os.write(2, text.encode())
