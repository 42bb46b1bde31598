"""Weights in and out: open_clip's and OpenAI's files, and the classifiers that runs leave."""

import json
import logging
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from robustft.clip.classifier import Architecture, Classifier
from robustft.data.sets import Preprocess
from robustft.errors import UserError
from robustft.files import save_tensors
from robustft.network import reachable

State = dict[str, Tensor]

FORMAT = "robustft-classifier"
# Sizes that OpenAI's archives carry beside the weights.
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}

SHIPPED = Path(__file__).parent / "tiny"  # a model config and weights that come with the package

open_clip.add_model_config(SHIPPED)


def create_clip(architecture: str, pretrained: str | None, seed: int) -> nn.Module:
    """An open_clip CLIP in float32 on the CPU, both towers.

    Args:
        architecture: one of ``open_clip.list_models()``, e.g. ViT-B-32-quickgelu.
        pretrained: an open_clip tag, a weights file, "embedded" for weights that come with the package, or None
            for random weights drawn with ``seed``.

    Raises:
        UserError: unknown architecture or tag, weights that cannot be fetched or do not fit.
    """
    model_config(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained in tags:
        return _fetch(architecture, str(pretrained))
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        clip = open_clip.create_model(architecture, load_weights=False)
    if pretrained is None:
        return clip.eval()
    path = SHIPPED / f"{architecture}.safetensors" if pretrained == "embedded" else Path(pretrained).expanduser()
    if not path.is_file():
        raise UserError(
            f"model.pretrained={pretrained!r} is neither a file nor a tag of {architecture}. "
            f"Its tags: {', '.join(tags) or 'none'}."
        )
    fit(clip, read_state(path), path, architecture)
    return clip.eval()


def model_config(architecture: str) -> dict[str, Any]:
    """open_clip's config of a model.

    Raises:
        UserError: unknown; names the nearest.
    """
    config = open_clip.get_model_config(architecture)
    if config is None:
        near = get_close_matches(architecture, open_clip.list_models(), n=4, cutoff=0.4)
        raise UserError(f"model.architecture={architecture} is unknown to open_clip. Nearest: {', '.join(near)}.")
    return config


def _fetch(architecture: str, tag: str) -> nn.Module:
    import huggingface_hub.constants as hub

    if not reachable(hub.ENDPOINT, seconds=5):
        hub.HF_HUB_OFFLINE = True  # a cached copy still loads; a missing one fails now, not after a minute of retries
    try:
        with _quiet():
            return open_clip.create_model(architecture, pretrained=tag).eval()
    except Exception as error:  # whatever the hub, the network or the disk says
        raise UserError(
            f"the weights {tag!r} of {architecture} could not be fetched ({str(error).splitlines()[0][:160]}). "
            "Download them on a connected machine and pass the file: model.pretrained=FILE "
            "(OpenAI's .pt, open_clip's .pt or .safetensors)."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip tells the root logger of every step of building a model."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def read_state(path: Path) -> State:
    """The state dict in a weights file, in float32 and open_clip's names; nothing in the file is run as code.

    Reads safetensors, PyTorch checkpoints (``weights_only=True``; a training checkpoint's ``state_dict`` is taken)
    and OpenAI's TorchScript archives.

    Raises:
        UserError: missing, unreadable, or needs code to be unpickled.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}.")
    try:
        state = _read_raw(path)
    except Exception as error:  # a damaged file fails in many ways
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds pickled objects besides tensors, which may run code and are not loaded. "
                "Save its state dict alone, best as safetensors."
            ) from error
        pickled = isinstance(error, pickle.UnpicklingError | KeyError | EOFError)
        reason = "damaged, or of another kind" if pickled or not str(error) else str(error).splitlines()[0][:160]
        raise UserError(f"{path} is not a readable weights file ({reason}).") from error
    state = state.get("state_dict", state)
    tensors = {
        key.removeprefix("module."): value.detach().float()
        for key, value in state.items()
        if isinstance(value, Tensor) and key.removeprefix("module.") not in _NOT_WEIGHTS
    }
    if not tensors:
        raise UserError(f"{path} holds no state dict.")
    return tensors


def _read_raw(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any("/code/" in name for name in archive.namelist())
        if scripted:
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise ValueError(f"holds a {type(loaded).__name__}, expected a state dict")
    return loaded


def fit(module: nn.Module, state: State, path: Path, what: str) -> None:
    """Load ``state`` into ``module``, strictly.

    Raises:
        UserError: keys or shapes differ; the message names the first of them.
    """
    own = module.state_dict()
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    wrong += [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is not part of it" for key in state if key not in own]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{path} does not fit {what}: {wrong[0]}{more}. Choose the model these weights belong to.")
    module.load_state_dict(state)


def save_classifier(path: Path, model: Classifier, classes: Sequence[str]) -> None:
    """Write ``model`` with what is needed to rebuild it, atomically; equal models give equal files, byte for byte.

    Tensors are named ``visual.<open_clip's names>``, ``head.weight`` and ``head.bias``; see ``describe`` for the rest.
    """
    save_tensors(path, model.state_dict(), describe(model, classes))


def describe(model: Classifier, classes: Sequence[str]) -> dict[str, str]:
    """Say what is needed to rebuild ``model`` from its tensors, as the metadata of a safetensors file.

    Args:
        classes: their names, in label order.

    Returns:
        format, architecture (open_clip's name), and as JSON its config, the transform (preprocess), the classes.
    """
    architecture = model.architecture
    return {
        "format": FORMAT,
        "architecture": architecture.name,
        "config": json.dumps(architecture.config),
        "preprocess": json.dumps(asdict(architecture.preprocess)),
        "classes": json.dumps(list(classes)),
    }


def load_classifier(path: Path, like: Classifier | None = None, classes: Sequence[str] | None = None) -> Classifier:
    """The classifier in ``path``, in evaluation mode on the CPU.

    Args:
        like: refuse a model of another architecture than this one.
        classes: refuse a model made for other classes.

    Raises:
        UserError: no such file, no model of this project, or not the model that is asked for.
    """
    metadata = read_metadata(path)
    if metadata is None:
        raise UserError(
            f"{path} is not a model left by a run (model.safetensors); weights of CLIP go to model.pretrained=FILE."
        )
    name, own_classes = metadata["architecture"], json.loads(metadata["classes"])
    if like is not None and like.architecture.name != name:
        raise UserError(f"{path} is a {name}, expected a {like.architecture.name}. Choose the model= it was made with.")
    if classes is not None and list(classes) != own_classes:
        raise UserError(
            f"{path} was made for {len(own_classes)} classes ({', '.join(own_classes[:3])}, …), "
            f"expected {len(classes)} ({', '.join(list(classes)[:3])}, …). Choose the data= it was made with."
        )
    saved: dict[str, Any] = json.loads(metadata["preprocess"])
    preprocess = Preprocess(saved["size"], tuple(saved["mean"]), tuple(saved["std"]), saved["interpolation"])
    architecture = Architecture(name, json.loads(metadata["config"]), preprocess)
    config = architecture.config
    visual = _build_vision_tower(config["embed_dim"], dict(config["vision_cfg"]), config.get("quick_gelu", False))
    model = Classifier(visual, nn.Linear(config["embed_dim"], len(own_classes)), architecture)
    fit(model, read_state(path), path, name)
    return model.eval()


def read_metadata(path: Path) -> dict[str, str] | None:
    """The metadata of a model left by a run; None for any other file.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}.")
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable weights file ({str(error).splitlines()[0][:160]}).") from error
    return metadata if metadata.get("format") == FORMAT else None
