"""ONNX, by PyTorch's dynamo exporter: a graph for onnxruntime and other runtimes, with a batch of any size."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from robustft.data.sets import Preprocess
    from robustft.deploy.export import Parts
    from robustft.deploy.source import Source

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOWERS = False
FILE = "model.onnx"
LARGEST = 1_800_000_000  # bytes of weights inside of the file: protobuf ends at 2 GB
LOAD = """\
```python
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])

{read}
image = image.resize({sides}, Image.Resampling.{filter})
left, top = (round((side - {size}) / 2) for side in image.size)
pixels = np.asarray(image.crop((left, top, left + {size}, top + {size}))).transpose(2, 0, 1)

probabilities, logits, features = session.run(None, {{"pixels": pixels[None]}})
print(classes[probabilities[0].argmax()])
```

`pixels` is uint8, RGB, [batch, 3, {size}, {size}], any batch; scaling and normalisation are in the graph, and so is the
temperature of the probabilities. `features` are of length 1."""


def refusal(source: "Source") -> str | None:
    """Nothing keeps a model from being tried."""
    return None


def write(parts: "Parts", folder: Path) -> None:
    """Write ``model.onnx``, with class names, transform and temperature in its metadata."""
    import torch

    from robustft.deploy.network import INPUT, OUTPUTS, Network, described, sample, write_beside

    network = Network(parts.model).eval()
    size = sum(value.nbytes for value in network.state_dict().values())
    with _quiet():
        program = torch.onnx.export(
            network,
            (sample(parts.model),),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(described(parts.model))
        program.save(folder / FILE, external_data=size > LARGEST)
    write_beside(folder, parts.model)


def read(folder: Path, preprocess: "Preprocess") -> "Callable[[Sequence], Tensor]":
    """What turns images into logits, by onnxruntime."""
    import onnx
    import onnxruntime
    import torch

    onnx.checker.check_model(str(folder / FILE))
    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"])

    def logits(images: Sequence) -> "Tensor":
        pixels = torch.stack([preprocess.pixels(image) for image in images]).numpy()
        return torch.from_numpy(session.run(["logits"], {"pixels": pixels})[0])

    return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and its parts tell of every step, and warn of what they have deprecated in each other."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
