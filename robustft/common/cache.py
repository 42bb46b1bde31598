"""What is computed once and kept in the user's cache: scores of models that do not change, features, probes.

A cache that cannot be read, written or locked costs time, never the run.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustft.common.files import describe, disk_error, save_tensors
from robustft.common.locks import locked
from robustft.common.paths import cache_folder as cache_folder
from robustft.common.processes import is_first_process

log = logging.getLogger(__name__)

_said: list[Path] = []  # the folder that this process has complained of


def fingerprint(model: nn.Module) -> str:
    """Make a digest of a model: its modules (activations and heads are in no weight) and its weights."""
    digest = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest(*parts: Any) -> str:
    """Name what was computed from ``parts`` (numbers, text, lists, dictionaries) with this torch."""
    text = json.dumps([*parts, torch.__version__], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def remembered(
    path: Path, make: Callable[[], dict[str, Tensor]], agree: Callable[[bool], bool] | None = None
) -> dict[str, Tensor]:
    """Load the tensors kept in ``path``; make and keep them, atomically, where they are not there or not readable.

    Args:
        agree: of processes that make them together, each its share, and the first one keeps them: tells each whether
            all of them say yes. What one finds alone counts for nothing: the others would wait for its share. None:
            one process makes them while others, of this run and of other runs, wait for it.
    """
    if agree is None:
        with one_at_a_time(path):
            known = _loaded(path)
            return _kept(path, make()) if known is None else known
    known = _loaded(path)
    if agree(known is not None) and known is not None:
        return known
    tensors = make()
    return _kept(path, tensors) if is_first_process() else tensors


def _loaded(path: Path) -> dict[str, Tensor] | None:
    with suppress(SafetensorError, OSError):
        return load_file(path)
    return None


def _kept(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    with optional(path.parent):
        save_tensors(path, tensors)
    return tensors


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Others wait, so that nothing is computed twice; where that cannot be arranged, nobody waits."""
    with ExitStack() as stack:
        with optional(path.parent):
            stack.enter_context(locked(path))
        yield


@contextmanager
def optional(folder: Path) -> Iterator[None]:
    """Let fail what is done here with a cache ``folder``: a line says so, once in a process."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = disk_error(error)
        _say_once(folder, describe(number, folder) if number else getattr(error, "strerror", None) or str(error))


def _say_once(folder: Path, reason: str) -> None:
    if not _said:
        _said.append(folder)
        log.warning(
            "cannot keep results in the cache %s (%s): they are computed anew each time. ROBUSTFT_CACHE=DIR names "
            "another folder for it",
            folder,
            reason,
        )
