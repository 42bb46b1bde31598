"""Files that are either whole or not there."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; the same content gives the same bytes, on every machine and every time.

    Args:
        tensors: on any device; copied to the CPU.
        metadata: text by name, kept in the file's header.
    """
    from safetensors.torch import save_file  # torch only when asked for

    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic(path) as partial:
        save_file(on_cpu, partial, dict(metadata) if metadata else None)
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file into alphabetical order: the library's is another one each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items()))}
        header = {**(metadata if metadata["__metadata__"] else {}), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > size:  # the library writes the same text in another order
            raise ValueError(f"{path}: the header has become longer by sorting it")
        file.seek(8)
        file.write(text.ljust(size))


def remove_partial(folder: Path) -> None:
    """Clear away what a killed process was writing into ``folder``. Nobody else may be writing there."""
    for left in folder.glob(PARTIAL):
        left.unlink(missing_ok=True)
