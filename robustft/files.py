"""Files that are either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path, shared: bool = False) -> Iterator[Path]:
    """Where to write the content of ``path``, whose folder is made: it takes its place when the block ends well.

    Args:
        shared: other processes may write the same file at this moment (a cache): each has a place of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: Path, text: str) -> None:
    """``text`` in a file of its own."""
    with atomic(path) as partial:
        partial.write_text(text, "utf-8")
