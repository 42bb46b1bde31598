"""Standard output and error that may go away while a run works: ``| head -1``, a terminal that is closed."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


class _Guarded(io.FileIO):
    """A file descriptor that is written to for as long as somebody reads it, and to nobody after that."""

    def write(self, content) -> int:  # type: ignore[no-untyped-def, override]
        try:
            return super().write(content)
        except OSError:  # the reader is gone, the terminal is closed, the disk of a log is full
            to_nobody(self.fileno())
            return memoryview(content).nbytes


def to_nobody(descriptor: int) -> None:
    """Let everything that is written to a descriptor from now on, by libraries too, go nowhere."""
    with suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


def guard() -> None:
    """Let no write to standard output or error raise: a run goes on, silently, when its reader goes away.

    Windows' consoles are left alone (they are written to in another way), and so is what is no real stream,
    as in tests and notebooks. Calling it again changes nothing.
    """
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # the descriptor was closed (`>&-`): the next file that is opened would get its number
            number = 0
            while number <= 2:
                number = os.open(os.devnull, os.O_RDWR)
            os.close(number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- for as long as the process
        elif os.name == "posix" and stream is getattr(sys, f"__{name}__") and _is_unguarded(stream):
            guarded = _guarded(stream)
            setattr(sys, name, guarded)
            setattr(sys, f"__{name}__", guarded)


def _is_unguarded(stream: TextIO) -> bool:
    own = isinstance(stream, io.TextIOWrapper)
    return own and not isinstance(getattr(stream.buffer, "raw", stream.buffer), _Guarded)


def _guarded(stream: TextIO) -> io.TextIOWrapper:
    with suppress(OSError):
        stream.flush()
    assert isinstance(stream, io.TextIOWrapper)
    raw = _Guarded(stream.fileno(), "w", closefd=False)
    raw.name = stream.name
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if not stream.write_through else raw,  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
