"""The weights in a pickled module, as wise-ft and FLYP save theirs: read, with nothing in it run.

A module of PyTorch is pickled as the names of its classes and their attributes, with `_parameters`, `_buffers` and
`_modules` among them. Classes are replaced by stand-ins that hold attributes and do nothing; of functions only those
are called that put a tensor together, and they are our own.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustft.models.archives import STORAGES, counted, part, refuse_wild


def read_module(path: Path) -> dict[str, Tensor] | None:
    """Return the state dict of a module that was pickled whole; None: it is something else.

    Raises:
        pickle.UnpicklingError, KeyError, EOFError, …: damaged.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (data,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            root = _Reader(io.BytesIO(part(archive, data)), archive, data.removesuffix(".pkl")).load()
    else:
        with path.open("rb") as file:
            root = _Reader(file).load()
    if not _is_module(root):
        return None
    return dict(found for found in counted(_tensors(root, "")) if found is not None)


class _StandIn:
    """Stands for an object of whatever class: made from anything, it holds the attributes that it is given."""

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)  # attributes, and those of __slots__
        for attributes in parts:
            if isinstance(attributes, dict):
                vars(self).update(attributes)

    def __call__(self, *_: Any, **__: Any) -> "_StandIn":
        return self

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, *_: Any) -> None:
        """Take part of a list that is a class of somebody's own."""

    def extend(self, *_: Any) -> None:
        """Likewise, several at once."""


class _Reader(pickle.Unpickler):
    """Reads a pickle with stand-ins for everything that it names."""

    def __init__(self, file: Any, archive: zipfile.ZipFile | None = None, folder: str = "") -> None:
        refuse_wild(file)
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch.storage", "_load_from_bytes"): _storage,
        }
        return known.get((module, name)) or type(name, (_StandIn,), {"__module__": module})

    def persistent_load(self, pid: tuple[Any, ...]) -> Tensor:
        """The storage that `torch.save` has put into a file of its own."""
        _, kind, key, _device, count = pid
        if self.archive is None:
            raise pickle.UnpicklingError("a tensor lies elsewhere")
        dtype = STORAGES[kind.__name__]
        content = part(self.archive, f"{self.folder}/{key}", count * dtype.itemsize)
        return torch.frombuffer(bytearray(content), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _storage(content: bytes) -> Tensor:
    """A storage that was pickled by itself: a file of `torch.save` in it, read as one of tensors alone."""
    found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=found.dtype).set_(found)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _first(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _is_module(found: Any) -> bool:
    return isinstance(found, _StandIn) and {"_parameters", "_buffers", "_modules"} <= vars(found).keys()


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor] | None]:
    """Its tensors by name, and None for each module, so that these can be counted too."""
    yield None
    parts = vars(module)
    passing = parts.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in parts[kind].items():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in passing):
                yield f"{prefix}{name}", value
    for name, inner in parts["_modules"].items():
        if _is_module(inner):
            yield from _tensors(inner, f"{prefix}{name}.")
