"""What a weights file, and what lies beside it, tells of the model besides its weights: activation, transform."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip

QUICK_GELU = {"quick_gelu": True, "gelu": False}  # Hugging Face's names
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class Origin:
    """What is known; None and nothing where it is not.

    Attributes:
        quick_gelu: whether the weights were trained with OpenAI's activation.
        said_by: what says so.
        preprocess: mean, std, interpolation and resize_mode of the images.
    """

    quick_gelu: bool | None = None
    said_by: str = ""
    preprocess: Mapping[str, Any] = field(default_factory=dict)


def beside(path: Path) -> Origin:
    """Read the descriptions that open_clip and Hugging Face keep in the folder of their weights."""
    if path.name.startswith("open_clip_"):
        name = "open_clip_config.json"
        config = _json(path.with_name(name))
        model, images = config.get("model_cfg"), config.get("preprocess_cfg") or {}
        known = {key: images[key] for key in ("mean", "std", "interpolation", "resize_mode") if images.get(key)}
        return Origin(bool(model.get("quick_gelu")) if isinstance(model, dict) else None, name, known)
    if path.name.startswith(("model", "pytorch_model")):
        config, images = _json(path.with_name("config.json")), _json(path.with_name("preprocessor_config.json"))
        vision = config.get("vision_config")
        # transformers' default, which it leaves out of what it writes
        activation = vision.get("hidden_act", "quick_gelu") if isinstance(vision, dict) else None
        names = {"mean": "image_mean", "std": "image_std"}
        known = {ours: images[theirs] for ours, theirs in names.items() if images.get(theirs)}
        if images.get("resample") in _FILTERS:
            known["interpolation"] = _FILTERS[images["resample"]]
        if isinstance(images.get("size"), dict) and "height" in images["size"] and not images.get("do_center_crop"):
            known["resize_mode"] = "squash"  # to height and width, whatever the shape of the image
        return Origin(QUICK_GELU.get(str(activation)), "config.json", known)
    return Origin()


def twin(architecture: str) -> str | None:
    """Name open_clip's model that differs by its activation alone."""
    base = architecture.removesuffix("-quickgelu")
    other = base if base != architecture else f"{base}-quickgelu"
    return other if other in open_clip.list_models() else None


def uses_quick_gelu(architecture: str) -> bool:
    """Say whether open_clip's model of this name has OpenAI's activation."""
    return bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
