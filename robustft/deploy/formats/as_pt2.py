"""A program of torch.export: PyTorch alone loads it, without robustft or open_clip, also for AOTInductor."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from robustft.data.sets import Preprocess
    from robustft.deploy.export import Parts
    from robustft.deploy.source import Source

PACKAGES, TOWERS = (), False
FILE = "model.pt2"
LOAD = """\
```python
import json

import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

more = {{"classes": ""}}
program = torch.export.load("model.pt2", extra_files=more).module()
classes = json.loads(more["classes"])

{read}
image = F.center_crop(F.resize(image, {edges}, InterpolationMode.{filter}), [{size}, {size}])

probabilities, logits, features = program(F.pil_to_tensor(image)[None])
print(classes[probabilities[0].argmax()])
```

The program takes pixels: uint8, RGB, [batch, 3, {size}, {size}], any batch; scaling and normalisation are in it, and so
is the temperature of the probabilities. `features` are of length 1."""


def refusal(source: "Source") -> str | None:
    """Nothing keeps a model from being tried."""
    return None


def write(parts: "Parts", folder: Path) -> None:
    """Write ``model.pt2``, with class names, transform and temperature in it."""
    import torch

    from robustft.deploy.network import Network, described, sample, write_beside

    network = Network(parts.model).eval()
    for weight in network.parameters():
        weight.requires_grad_(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch")
        program = torch.export.export(network, (sample(parts.model),), dynamic_shapes=({0: batch},))
        torch.export.save(program, folder / FILE, extra_files=described(parts.model))
    write_beside(folder, parts.model)


def read(folder: Path, preprocess: "Preprocess") -> "Callable[[Sequence], Tensor]":
    """What turns images into logits, by PyTorch alone."""
    import torch

    more: dict[str, Any] = {"classes": ""}
    program = torch.export.load(folder / FILE, extra_files=more).module()
    assert json.loads(more["classes"])

    def logits(images: Sequence) -> "Tensor":
        with torch.no_grad():
            return program(torch.stack([preprocess.pixels(image) for image in images]))[1]

    return logits
