"""The state dict in a weights file of whatever kind; nothing in it is run as code."""

import json
import logging
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from robustft.common.errors import UserError
from robustft.common.wording import first_line
from robustft.models import archives, pickled, torchscript
from robustft.models.names import State, to_open_clip, unwrapped
from robustft.models.origin import QUICK_GELU, Origin, beside

log = logging.getLogger(__name__)

# Sizes that OpenAI's archives, and they alone, carry beside the weights.
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}
MOST_REPEATED = 2**26  # values of tensors that show the same ones many times
_HOLDERS = ("state_dict", "model_state_dict", "model")  # where a training checkpoint keeps its model


def read_clip(path: Path) -> tuple[State, Origin]:
    """Return the weights of a whole CLIP, in float32 and open_clip's names, and what is known of where they come from.

    Reads open_clip's, OpenAI's and Hugging Face's names.

    Raises:
        UserError: see ``read_state``; or no CLIP with a text tower and a plain image tower.
    """
    found = _read(path)
    return to_open_clip(_weights(found, path), path), _origin(path, found)


def read_state(path: Path) -> State:
    """Return the state dict in a weights file, in float32.

    Reads safetensors (also in several files, by their index), PyTorch checkpoints (``weights_only=True``; a training
    checkpoint's ``state_dict`` is taken), TorchScript archives, and modules that were pickled whole.

    Raises:
        UserError: missing, unreadable, or needs code to be unpickled.
    """
    return _weights(_read(path), path)


def _weights(found: Mapping[str, Any], path: Path) -> State:
    if _repeats(found):
        raise UserError(f"{path} is not a readable weights file (its tensors are larger than what it holds).")
    tensors = {
        unwrapped(name): value.detach().float()
        for name, value in found.items()
        if isinstance(value, Tensor) and unwrapped(name) not in _NOT_WEIGHTS
    }
    if not tensors:
        raise UserError(f"{path} holds no state dict.")
    return tensors


def _repeats(found: Mapping[str, Any]) -> bool:
    """Whether tensors show a few values so many times that they do not fit into memory once they are copied."""
    repeated = [
        v
        for v in found.values()
        if isinstance(v, Tensor) and v.numel() * v.element_size() > v.untyped_storage().nbytes()
    ]
    return sum(value.numel() for value in repeated) > MOST_REPEATED


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no weights file at {path}.")
    try:
        found = _read_raw(path)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        if isinstance(error, pickle.UnpicklingError) and (module := _read_pickled(path)) is not None:
            return module
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds pickled objects besides tensors, which may run code and are not loaded. "
                "Save its state dict alone, best as safetensors."
            ) from error
        damaged = isinstance(error, pickle.UnpicklingError | KeyError | EOFError)
        reason = "damaged, or of another kind" if damaged or not str(error) else first_line(error)
        raise UserError(f"{path} is not a readable weights file ({reason}).") from error
    held = [name for name, value in found.items() if isinstance(value, Mapping)]
    chosen = next((name for name in _HOLDERS if name in held), None)
    averaged = [name for name in held if "ema" in name.lower()]
    if chosen and averaged:
        log.info("%s: read %s; it holds %s too, which is left aside", path, chosen, averaged[0])
    return found[chosen] if chosen else found


def _read_pickled(path: Path) -> Mapping[str, Any] | None:
    """The state dict of a module that was pickled whole, as wise-ft and FLYP do; None: it is something else."""
    try:
        return pickled.read_module(path)
    except Exception:  # noqa: BLE001 -- damaged, or of another kind: the first error says what is to be said
        return None


def _read_raw(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    if path.suffix == ".json":
        return _read_parts(path)
    if torchscript.is_torchscript(path):
        return dict(torchscript.read_torchscript(path))
    archives.refuse_swollen(path)
    with warnings.catch_warnings():  # of pickles that it does not read
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise ValueError(f"holds a {type(loaded).__name__}, expected a state dict")
    return loaded


def _read_parts(index: Path) -> dict[str, Any]:
    """The tensors that an index (``*.index.json``) finds in several files beside it."""
    names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    parts = [index.parent / Path(name).name for name in names]
    for part in parts:
        if not part.is_file():
            raise UserError(f"{index} is not whole: {part.name} is missing.")
    return {name: value for part in parts for name, value in _read_raw(part).items()}


def _origin(path: Path, found: Mapping[str, Any]) -> Origin:
    if any(unwrapped(name) in _NOT_WEIGHTS for name in found):
        return Origin(True, "its form, that of OpenAI's archives")
    if torchscript.is_torchscript(path) and (activation := torchscript.activation_of(path)):
        return Origin(QUICK_GELU[activation], "the text in the archive")
    return beside(path)
