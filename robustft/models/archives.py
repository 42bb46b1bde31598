"""What is read of pickles and of zip archives with pickles in them, although somebody may have made them to do harm.

Nothing that they name is imported or called (``torchscript.py``, ``pickled.py``); what is here keeps them from taking
more time and memory than a file of their size may.
"""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

MOST_TEXT = 2**26  # bytes of a part that may be compressed: the text of classes
MOST_MODULES = 2**14  # of a module tree; that of a ViT-L has 500
STORAGES = {  # the names that torch gives to tensors' contents
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


def part(archive: zipfile.ZipFile, name: str, size: int | None = None) -> bytes:
    """Read a part of an archive.

    Args:
        size: in bytes, of a part that holds a tensor: torch stores those as they are.

    Raises:
        pickle.UnpicklingError: it has another size, or becomes very large.
        KeyError: there is no such part.
    """
    known = archive.getinfo(name)
    if size is not None and (known.file_size != size or known.compress_size != size):
        raise pickle.UnpicklingError("a tensor is cut off")
    if size is None and known.file_size > MOST_TEXT:
        raise pickle.UnpicklingError("it unpacks to more than it may")
    return archive.read(name)


def refuse_swollen(path: Path) -> None:
    """Refuse a zip archive with a large part that is compressed: torch stores its parts as they are, and unpacks any.

    Raises:
        pickle.UnpicklingError: it is one of those.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_size < one.file_size > MOST_TEXT for one in archive.infolist()):
            raise pickle.UnpicklingError("it unpacks to more than it may")


def refuse_wild(file: io.BytesIO | io.BufferedReader) -> None:
    """Refuse a pickle whose memo has holes: Python fills them, so that a few bytes would take all memory there is.

    Args:
        file: is left at its beginning.

    Raises:
        pickle.UnpicklingError, ValueError: it is one of those, or no pickle.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _PUTS and (argument or 0) > number:
            raise pickle.UnpicklingError("its memo has holes")
    file.seek(0)


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """Give the items, if they are not too many: a few modules that hold each other twice make a tree without end.

    Raises:
        pickle.UnpicklingError: they are.
    """
    for number, item in enumerate(items):
        if number > MOST_MODULES:
            raise pickle.UnpicklingError("it has modules without end")
        yield item
