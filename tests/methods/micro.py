"""A classifier small enough to do arithmetic on."""

from copy import deepcopy
from pathlib import Path

import torch
from open_clip.model import _build_vision_tower
from torch import nn

from robustft.data.sets import Preprocess
from robustft.models.classifier import Architecture, Classifier
from robustft.models.weights import load_classifier, save_classifier

CLASSES = ["circle", "square", "star"]
CONFIG = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
}


def micro(seed: int, architecture: str = "micro", classes: int = len(CLASSES)) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = _build_vision_tower(CONFIG["embed_dim"], dict(CONFIG["vision_cfg"]), quick_gelu=True)
        head = nn.Linear(CONFIG["embed_dim"], classes)
    preprocess = Preprocess(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Classifier(visual, head, Architecture(architecture, CONFIG, preprocess)).eval()


def saved(folder: Path, seed: int, **options) -> str:
    """The file that a run would leave of ``micro(seed)``."""
    path = folder / f"{seed}.safetensors"
    save_classifier(path, micro(seed, **options), CLASSES[: options.get("classes")])
    return str(path)


def load(path: str | Path) -> Classifier:
    """As a run loads a model of its own architecture and classes."""
    return load_classifier(Path(path), like=micro(0), classes=CLASSES)


def zeros_signed(model: Classifier) -> Classifier:
    """With zeros of both signs among the weights, which careless sums turn into +0."""
    twin = deepcopy(model)
    with torch.no_grad():
        twin.head.bias.copy_(torch.tensor([-0.0, 0.0, -0.0]))
    return twin


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value.view(torch.int32), theirs[name].view(torch.int32)) for name, value in ours.items()
    )
