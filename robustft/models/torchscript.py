"""The weights in a TorchScript archive, as OpenAI's CLIP comes in: read, with nothing in it run or compiled.

Such a zip file holds ``data.pkl``, a pickle of the module tree, the tensors' bytes in ``data/``, and Python text in
``code/``. The pickle is read with stand-ins for everything that it names; any other name is refused.
torch.jit, which is deprecated, is not asked.
"""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustft.models.archives import STORAGES, counted, part, refuse_wild

_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"}


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return parameters and buffers by their names, as ``torch.jit.load(path).state_dict()`` would.

    Raises:
        pickle.UnpicklingError, KeyError, zipfile.BadZipFile, …: damaged, or of an unknown kind.
    """
    with zipfile.ZipFile(path) as archive:
        (data,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        root = _Reader(archive, data).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError("no module in it")
    return dict(found for found in counted(_tensors(root, "")) if found is not None)


def activation_of(path: Path) -> str | None:
    """Name the activation that the archive's text computes: gelu, quick_gelu; None if it is neither or both."""
    with zipfile.ZipFile(path) as archive:
        text = b"".join(part(archive, name) for name in archive.namelist() if "/code/" in name and name.endswith(".py"))
    found = {"gelu": b"torch.gelu(" in text, "quick_gelu": b"torch.sigmoid(" in text}
    named = [name for name, there in found.items() if there]
    return named[0] if len(named) == 1 else None


class _Module:
    """Stands for a module: its attributes, and which of them are parameters and buffers (None: not said)."""

    def __init__(self, weights: set[str] | None) -> None:
        self.weights = weights
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, data: str) -> None:
        content = io.BytesIO(part(archive, data))
        refuse_wild(content)
        super().__init__(content)
        self.archive, self.folder = archive, data.removesuffix(".pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _class_of(self._weights(module, name))
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _LISTS:
            return lambda values, *_: values
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, pid: tuple[Any, ...]) -> Tensor:
        _, kind, key, _device, count = pid
        dtype = STORAGES[kind]
        content = part(self.archive, f"{self.folder}/{key}", count * dtype.itemsize)
        return torch.frombuffer(bytearray(content), dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def _weights(self, module: str, name: str) -> set[str] | None:
        """Names of parameters and buffers, from the text of the class: other attributes may be tensors too."""
        place = f"{self.folder.rpartition('/')[0]}/code/{module.replace('.', '/')}.py"
        if place not in self.archive.namelist():
            return None
        text = part(self.archive, place).decode()
        head = re.search(rf"^class {re.escape(name)}\(Module\):\n((?:  __\w+__ = .*\n)*)", text, re.MULTILINE)
        if head is None:
            return None
        lists = re.findall(r"__(?:parameters|buffers)__ = \[(.*)\]", head[1])
        return set(re.findall(r'"([^"]+)"', " ".join(lists)))


def _class_of(weights: set[str] | None) -> type:
    """A class of modules with these weights: a pickle makes its objects by ``cls.__new__(cls)``, without arguments."""

    def new(cls: type) -> _Module:
        module = object.__new__(_Module)
        _Module.__init__(module, weights)
        return module

    return type("Module", (_Module,), {"__new__": new})


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor] | None]:
    """Its tensors by name, and None for each module, so that these can be counted too."""
    yield None
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and (module.weights is None or name in module.weights):
            yield f"{prefix}{name}", value
