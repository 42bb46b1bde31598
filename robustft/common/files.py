"""Files that are either whole or not there."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.locks import here, is_gone
from robustft.common.wording import first_line

ASIDE = ".new"  # folder for settings of the run that is to replace what lies in its folder
PARTIAL = "*.partial"  # what a killed process leaves

# What a disk says that is full, broken, read-only or another's. Anything else is a fault of the program.
DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


class WriteError(UserError, OSError):
    """A file cannot be written: the disk is full or fails, or the place is not the user's."""


_numbers = count()  # of this process's places, so that its threads have one each


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder inside of ``folder`` to make in what is to appear there whole; gone, with what is left, afterwards.

    What processes left behind that were killed at this is cleared away.
    """
    for left in folder.glob(f".{PARTIAL}"):
        if is_gone(left.name.removeprefix(".").rpartition(".")[0].rpartition("+")[0]):
            shutil.rmtree(left, ignore_errors=True)
    place = folder / f".{here()}+{next(_numbers)}.partial"
    shutil.rmtree(place, ignore_errors=True)  # of a process that had the same number
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Where to write the content of ``path``, whose folder is made: it takes its place when the block ends well.

    Processes on several machines may write the same file at once: each has a place of its own, the last one stays.

    Raises:
        WriteError: the disk is full, read-only or broken. What was there before is still there, and nothing else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside(path.parent) as place:  # safetensors makes a further file of its own while it writes
            partial = place / path.name
            yield partial
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o666 & ~umask)  # as any other file: safetensors' are their owner's alone
            os.replace(partial, path)
    except BaseException as error:
        if (reason := disk_error(error)) is not None:
            raise WriteError(f"cannot write {path}: {describe(reason, path.parent)}") from error
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
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:  # of earlier versions
            left.unlink(missing_ok=True)


def refuse_damaged(path: Path, what: str) -> None:
    """Refuse a file of tensors that was cut off, as a copy or a download leaves it; others than safetensors pass.

    Args:
        what: the setting that named it, for the message.

    Raises:
        UserError: its header does not fit what is there.
    """
    if path.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):  # reads the header alone, and imports nothing
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{what}={path}: not a readable weights file ({first_line(error)}): damaged or cut off. Copy it again"
        ) from error


def disk_error(error: BaseException) -> int | None:
    """The error number where an exception is the disk's; libraries wrap it, or only cite it; else None."""
    if isinstance(error, WriteError) and error.__cause__ is not None:
        return disk_error(error.__cause__)
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (cited := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors
        number = int(cited[1])
    if number is None and isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):  # torch.save
        number = error.__context__.errno
    return number if number in DISK else None


def describe(number: int, folder: Path) -> str:
    """A disk's error in words, with the room that is left where that is the reason."""
    text = os.strerror(number)
    if number == errno.ENOSPC:
        with suppress(OSError):
            text += f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free)"
    return text
