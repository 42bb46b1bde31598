"""A model as one function of pixels, for the forms that keep a graph: nothing about it has to be known to call it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from robustft.common.files import write
from robustft.deploy.model import Model

INPUT = "pixels"
OUTPUTS = ("probabilities", "logits", "features")
PREPROCESS = "preprocess.json"


class Network(nn.Module):
    """Pixels to probabilities, logits and features of unit length.

    Pixels are uint8 RGB at the model's size, channels first; scaling and normalisation are inside. Probabilities are at
    the fitted temperature, where there is one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model.without_text()
        self.temperature = 1.0 if model.temperature is None else model.temperature
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.preprocess, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(
        self, pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"], Float[Tensor, "batch features"]]:
        images = (pixels.float() / 255 - self.mean) / self.std
        features = nn.functional.normalize(self.model.encode(images), dim=-1)
        logits = self.model.head(features)
        return (logits / self.temperature).softmax(-1), logits, features


def sample(model: Model) -> UInt8[Tensor, "2 3 size size"]:
    """Pixels to trace with: two images, since one would be taken for a batch that is always one."""
    return torch.zeros(2, 3, model.preprocess.size, model.preprocess.size, dtype=torch.uint8)


def described(model: Model) -> dict[str, str]:
    """What has to be known besides the graph, as text: class names, transform and temperature, each in JSON."""
    return {
        "classes": json.dumps(model.class_names),
        "preprocess": json.dumps(preprocess_of(model)),
        "temperature": json.dumps(model.temperature),
    }


def preprocess_of(model: Model) -> dict[str, Any]:
    """How an image becomes pixels."""
    known = asdict(model.preprocess)
    return {key: known[key] for key in ("size", "resize", "crop", "interpolation")}


def write_beside(folder: Path, model: Model) -> None:
    """Write class names and transform as files, for those who look into the folder."""
    write(folder / "classes.json", json.dumps(model.class_names, indent=1, ensure_ascii=False) + "\n")
    write(folder / PREPROCESS, json.dumps(preprocess_of(model) | {"temperature": model.temperature}, indent=1) + "\n")
