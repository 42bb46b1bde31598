"""Weights in and out: open_clip's and OpenAI's files, and the classifiers that runs leave."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torchvision.transforms.v2 import InterpolationMode

from robustft.common.errors import UserError
from robustft.common.files import save_tensors
from robustft.common.network import reachable
from robustft.common.randomness import seeded
from robustft.common.wording import counted, difference, first_line, short
from robustft.data.sets import Preprocess
from robustft.models import timm_vit
from robustft.models.classifier import Architecture, Classifier
from robustft.models.files import BEST, FORMAT, model_file, weights_file
from robustft.models.names import State, with_text_of
from robustft.models.open_clip_private import build_tower, quiet
from robustft.models.origin import Origin, twin, uses_quick_gelu
from robustft.models.reading import read_clip, read_state
from robustft.models.text import ADVICE, OURS, TextSource, find, own_names, saved_names, without_visual

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "tiny"  # a model config and weights that come with the package

MOST = 2**16  # of any number in the config of a tower
MOST_PIXELS = 2**12  # a side of what a model sees

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
    with seeded("weights", seed), quiet():
        clip = open_clip.create_model(architecture, load_weights=False)
    if pretrained is None:
        return clip.eval()
    path = SHIPPED / f"{architecture}.safetensors" if pretrained == "embedded" else weights_file(pretrained)
    if not path.is_file():
        raise UserError(
            f"model.pretrained={pretrained!r} is neither a file nor a tag of {architecture}. "
            f"Its tags: {', '.join(tags) or 'none'}."
        )
    state, origin = read_clip(path)
    if pretrained != "embedded":
        check_activation(architecture, path, origin)
    fit(clip, with_text_of(state, clip.state_dict()), path, architecture)
    return clip.eval()


def check_activation(architecture: str, path: Path, origin: Origin) -> None:
    """Refuse weights that were trained with another activation than the model has; tell of those that do not say it."""
    quick, other = uses_quick_gelu(architecture), twin(architecture)
    names = ("GELU", "quick-GELU")
    if origin.quick_gelu is None:
        choice = f"; for weights trained with {names[not quick]}"
        choice += " (OpenAI's, DFN's, MetaCLIP's)" if not quick else " (most of LAION's and DataComp's)"
        choice = f"{choice} choose model.architecture={other}" if other else ""
        log.info("%s: nothing in it tells the activation; %s uses %s%s", path, architecture, names[quick], choice)
    elif origin.quick_gelu != quick:
        raise UserError(
            f"{path} was trained with {names[origin.quick_gelu]} ({origin.said_by} says so), and {architecture} uses "
            f"{names[quick]}, which costs points of accuracy. "
            + (f"Choose model.architecture={other}." if other else "Choose another model.architecture.")
        )


def _check_tag(architecture: str, tag: str) -> None:
    quick, other = uses_quick_gelu(architecture), twin(architecture)
    trained = bool((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("quick_gelu"))
    if trained != quick and other:
        raise UserError(
            f"the weights {tag!r} were trained with {'quick-GELU' if trained else 'GELU'}, which {architecture} does "
            f"not use; that costs points of accuracy. Choose model.architecture={other}."
        )


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
    _check_tag(architecture, tag)
    import huggingface_hub.constants as hub

    if not reachable(hub.ENDPOINT, seconds=5):
        hub.HF_HUB_OFFLINE = True  # a cached copy still loads; a missing one fails now, not after a minute of retries
    try:
        with quiet():
            return open_clip.create_model(architecture, pretrained=tag).eval()
    except Exception as error:  # whatever the hub, the network or the disk says
        raise UserError(
            f"the weights {tag!r} of {architecture} could not be fetched ({first_line(error)}). "
            "Download them on a connected machine and pass the file: model.pretrained=FILE "
            "(OpenAI's .pt, open_clip's .pt or .safetensors)."
        ) from error


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
        raise UserError(f"{path} does not fit {what}: {wrong[0]}{more}. {_advice(state)}")
    module.load_state_dict(state)


def _advice(state: State) -> str:
    """Names of open_clip's models that have the shapes of ``state``."""
    try:
        proj, conv = state["visual.proj"], state["visual.conv1.weight"]
        side = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    except (KeyError, ValueError, TypeError):
        return "Choose the model these weights belong to."
    blocks = {name.split(".")[3] for name in state if name.startswith("visual.transformer.resblocks.")}
    patch = conv.shape[-1]
    found = {"image_size": side * patch, "patch_size": patch, "width": conv.shape[0], "layers": len(blocks)}
    usual = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12}
    fitting = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        same = all(vision.get(key, usual[key]) == value for key, value in found.items())
        if same and config["embed_dim"] == proj.shape[-1] and "timm_model_name" not in vision:
            fitting.append(name)
    made_for = f"They are of a model for images of {side * patch} px in patches of {patch}"
    if not fitting:
        return f"{made_for}: choose the model these weights belong to."
    return f"{made_for}: choose model.architecture={' or '.join(sorted(fitting, key=len)[:3])}."


def save_classifier(path: Path, model: Classifier, classes: Sequence[str]) -> None:
    """Write ``model`` with what is needed to rebuild it, atomically; equal models give equal files, byte for byte.

    Tensors are named ``visual.<open_clip's names>``, ``head.weight`` and ``head.bias``; those of a text tower that was
    trained have open_clip's names too. See ``describe`` for the rest.
    """
    save_tensors(path, saved_names(model.state_dict()), describe(model, classes))


def describe(model: Classifier, classes: Sequence[str]) -> dict[str, str]:
    """Say what is needed to rebuild ``model`` from its tensors, as the metadata of a safetensors file.

    Args:
        classes: their names, in label order.

    Returns:
        format, architecture (open_clip's name), and as JSON its config, the transform (preprocess), the classes, and
        where its frozen text tower comes from (text).
    """
    architecture = model.architecture
    frozen = {} if architecture.text is None else {"text": json.dumps(asdict(architecture.text))}
    return frozen | {
        "format": FORMAT,
        "architecture": architecture.name,
        "config": json.dumps(architecture.config),
        "preprocess": json.dumps(architecture.preprocess.describe()),
        "classes": json.dumps(list(classes)),
    }


def is_ours(path: Path) -> bool:
    """Say whether a file is one that a run leaves.

    Raises:
        UserError: there is no such file.
    """
    return path.name == BEST or read_metadata(path) is not None


def load_classifier(
    path: Path,
    like: Classifier | None = None,
    classes: Sequence[str] | None = None,
    backbone: Callable[..., nn.Module] | None = None,
) -> Classifier:
    """The classifier in ``path``, in evaluation mode on the CPU.

    Args:
        like: refuse a model of another architecture than this one.
        classes: refuse a model made for other classes.
        backbone: the class of a backbone of the user's own; files never name code.

    Raises:
        UserError: no such file, no model of this project, or not the model that is asked for.
    """
    path = model_file(path)
    metadata = read_metadata(path)
    if metadata is None and path.name == BEST:
        raise UserError(
            f"{path} holds weights without what rebuilds their model: an interrupted linear probe, or a run of an "
            f"earlier version. Go on with that run first: resume={path.parent}"
        )
    if metadata is None:
        raise UserError(
            f"{path} is not a model left by a run (model.safetensors). Weights of others go to model.pretrained=FILE,"
            " or with method=evaluate to checkpoint=FILE, which leaves such a model."
        )
    if "step" in metadata:
        _say_unfinished(path, metadata["step"])
    architecture, own_classes = _told(metadata, path)
    name = architecture.name
    if like is not None and like.architecture.name != name:
        raise UserError(f"{path} is a {name}, expected a {like.architecture.name}. Choose the model= it was made with.")
    if classes is not None and list(classes) != own_classes:
        raise UserError(
            f"{path} was made for {counted(len(own_classes), 'class', 'classes')}, and not for the {len(classes):,}"
            f" of this data: {difference(list(classes), own_classes)}. Choose the data= it was made with."
        )
    if like is not None:
        require_alike(architecture, like.architecture, path)
    state = own_names(read_state(path))
    if (head := state.get("head.weight")) is None or head.ndim != 2 or len(head) != len(own_classes):
        raise _unlike(path, f"it has no head for its {counted(len(own_classes), 'class', 'classes')}")
    _check_size(path, architecture, state)
    visual = _rebuilt(path, architecture, type(like.visual) if like is not None else backbone)
    trained = any(not key.startswith(OURS) for key in state)  # a text tower
    tower = without_visual(create_clip(name, None, 0)) if trained else None
    model = Classifier(visual, nn.Linear(head.shape[1], len(own_classes)), architecture, tower)
    fit(model, state, path, name)
    return model.eval()


def _told(metadata: Mapping[str, str], path: Path) -> tuple[Architecture, list[str]]:
    """What a file says of its model: the architecture, and the classes in label order.

    Raises:
        UserError: it cannot be understood.
    """
    try:
        classes, config = json.loads(metadata["classes"]), json.loads(metadata["config"])
        text = TextSource(**json.loads(metadata["text"])) if "text" in metadata else None
        if text is not None and not all(isinstance(value, str) for value in asdict(text).values()):
            raise ValueError("text")
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes")
        if not isinstance(config, dict):
            raise ValueError("config")
        return Architecture(metadata["architecture"], config, preprocess_in(metadata), text), classes
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        why = short(" ".join(str(error).split()), 80)
        raise _unlike(path, f"what it says of its model cannot be understood ({why})") from error


def _unlike(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a model as a run leaves it: {why}. Copy it again")


def _check_size(path: Path, architecture: Architecture, state: State) -> None:
    """Refuse a file that describes another image tower than it holds, before one of whatever size is made.

    Raises:
        UserError: says so.
    """
    config, side = architecture.config, architecture.preprocess.size
    if config.get("backbone") not in (None, "timm"):
        return  # the user's own
    vision = config.get("vision_cfg") or {}
    known = vision.get("image_size", side)
    if side not in (known if isinstance(known, list) else [known]):
        raise _unlike(path, f"its images have {side} pixels a side, and its tower takes {known}")
    named = vision.get("timm_model_name")
    if named is not None and not timm.is_model(named):
        raise _unlike(path, f"its tower is {short(repr(named), 60)}, which timm does not know")
    if max(_numbers(config), default=0) > MOST:
        raise _unlike(path, "its tower would be larger than any")
    try:
        with torch.device("meta"):
            made = _rebuilt(path, architecture, None).state_dict()
    except Exception as error:  # of numbers and names that fit no tower
        raise _unlike(path, f"its tower cannot be made ({short(' '.join(str(error).split()), 80)})") from error
    other = [name for name, value in made.items() if state.get(f"visual.{name}", value[..., None]).shape != value.shape]
    if other:
        raise _unlike(path, f"visual.{other[0]} is missing, or has other values than its tower takes")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, int | float):
        yield value


def text_tower(model: Classifier, near: Sequence[Path] = (), advice: str = ADVICE) -> nn.Module:
    """The text tower that goes with a model, as a CLIP without its image tower: the trained one, or the frozen one.

    Args:
        near: folders (of the model) or files where a frozen one's weights may lie.
        advice: what else can be done where it is not found, for the message.

    Raises:
        UserError: it has none, or the frozen one is not found.
    """
    if model.text is not None:
        return model.text
    if model.architecture.text is None:
        raise UserError(f"{model.architecture.name} goes with no text tower: it has none, or its weights are random")
    return find(model.architecture.text, lambda architecture, place: create_clip(architecture, place, 0), near, advice)


def has_text(path: Path) -> bool:
    """Whether the model in ``path`` has a text tower of its own; False for what is no model of a run.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    path = model_file(path)
    if read_metadata(path) is None:
        return False
    with safe_open(path, "pt") as file:
        return any(not key.startswith(OURS) for key in file.keys())  # noqa: SIM118 (not a mapping)


def _rebuilt(path: Path, architecture: Architecture, own: Callable[..., nn.Module] | None) -> nn.Module:
    """The image tower of a saved model, with random weights."""
    config = architecture.config
    match config.get("backbone"):
        case None:
            return build_tower(config)
        case "timm":
            return timm_vit.build(architecture.name, None, 0)
    if own is None:
        raise UserError(
            f"{path} has a backbone that is no part of robustft ({architecture.name}): give its class,"
            " robustft.load(path, backbone=Class)"
        )
    return own(**config["settings"])


@lru_cache
def _say_unfinished(path: Path, step: str) -> None:
    log.warning("%s is the best model so far of a run that was interrupted: that of step %s", path, step)


def require_alike(found: Architecture, expected: Architecture, path: Path) -> None:
    """What has the same name may still see other images, or use another activation."""
    quick = [bool(one.config.get("quick_gelu")) for one in (found, expected)]
    if quick[0] != quick[1]:
        names = ["quick-GELU" if one else "GELU" for one in quick]
        raise UserError(f"{path} uses {names[0]}, this run's model {names[1]}. Choose the model= it was made with.")
    theirs, ours = asdict(found.preprocess), asdict(expected.preprocess)
    other = next((key for key in ours if theirs[key] != ours[key]), None)
    if other is not None:
        raise UserError(
            f"{path} takes its images with another transform ({other} {theirs[other]}, this run's model: "
            f"{ours[other]}). Choose the model= it was made with."
        )


def preprocess_in(metadata: Mapping[str, str]) -> Preprocess:
    """Return the transform that the metadata of a model describes.

    Raises:
        KeyError, TypeError, ValueError: it describes none.
    """
    saved: dict[str, Any] = json.loads(metadata["preprocess"])
    made = Preprocess(**{**saved, "mean": tuple(saved["mean"]), "std": tuple(saved["std"])})
    numbers = (*made.mean, *made.std, made.crop)
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers) or len(numbers) != 7:
        raise ValueError("preprocess")
    whole = isinstance(made.size, int) and not isinstance(made.size, bool) and 0 < made.size <= MOST_PIXELS
    if not whole or not 0 < made.crop <= 1 or min(made.std) <= 0 or made.resize not in ("shortest", "squash"):
        raise ValueError("preprocess")
    InterpolationMode(made.interpolation)
    return made


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
        raise UserError(f"{path} is not a readable weights file ({first_line(error)}).") from error
    return metadata if metadata.get("format") == FORMAT else None
