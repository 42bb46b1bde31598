"""Files that are either whole or not there."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = "*.partial"  # what a killed process leaves


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Where to write the content of ``path``, whose folder is made: it takes its place when the block ends well.

    Processes on several machines may write the same file at once: each has a place of its own, the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # as any other file: safetensors' are their owner's alone
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as partial:
        partial.write_text(text, "utf-8")


def remove_partial(folder: Path) -> None:
    """Clear away what a killed process was writing into ``folder``. Nobody else may be writing there."""
    for left in folder.glob(PARTIAL):
        left.unlink(missing_ok=True)
