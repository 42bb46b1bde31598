"""A folder that `open_clip.create_model_from_pretrained("local-dir:DIR")` loads: both towers, the class head beside."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from robustft.data.sets import Preprocess
    from robustft.deploy.export import Parts
    from robustft.deploy.source import Source

PACKAGES, TOWERS = (), True
WEIGHTS, CONFIG, HEAD = "open_clip_model.safetensors", "open_clip_config.json", "head.safetensors"
LOAD = """\
```python
import json

import open_clip
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

model, preprocess = open_clip.create_model_from_pretrained("local-dir:{folder}")
head, classes = load_file("{folder}/head.safetensors"), json.load(open("{folder}/classes.json"))

{read}
with torch.no_grad():
    features = model.encode_image(preprocess(image)[None], normalize=True)
logits = features @ head["weight"].T + head["bias"]
print(classes[logits[0].argmax()])
```

From a hub: `hf-hub:OWNER/NAME` in place of `local-dir:{folder}`. {temperature}{text}"""


def refusal(source: "Source") -> str | None:
    """Why open_clip cannot hold the model: it has no text tower."""
    if kind := source.tower.get("backbone"):
        whose = "timm's" if kind == "timm" else "of your own"
        lacks = f"{source.architecture} is {whose} and has no text tower, which open_clip's models have"
        return f"{lacks}: --format=onnx and pt2 take any model"
    return None


def write(parts: "Parts", folder: Path) -> None:
    """Write weights, config, head, class names, and the tokenizer's files where open_clip needs them."""
    from robustft.common import files
    from robustft.common.files import save_tensors
    from robustft.models.open_clip_private import HFTokenizer
    from robustft.models.weights import model_config

    whole, preprocess = parts.whole, parts.model.preprocess
    assert whole is not None
    config = {
        "model_cfg": model_config(parts.model.architecture.name),
        "preprocess_cfg": {
            "mean": preprocess.mean,
            "std": preprocess.std,
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize,
        },
    }
    save_tensors(folder / WEIGHTS, whole.clip.state_dict(), {"format": "pt"})
    files.write(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_head(parts, folder)
    if isinstance(whole.tokenizer, HFTokenizer):
        whole.tokenizer.save_pretrained(str(folder))


def write_head(parts: "Parts", folder: Path) -> None:
    """Write ``head.safetensors`` (weight [classes, features], bias, temperature where fitted) and ``classes.json``."""
    import torch

    from robustft.common import files
    from robustft.common.files import save_tensors

    model = parts.model
    fitted = {} if model.temperature is None else {"temperature": torch.tensor(model.temperature)}
    save_tensors(folder / HEAD, {"weight": model.head.weight, "bias": model.head.bias, **fitted}, {"format": "pt"})
    files.write(folder / "classes.json", json.dumps(model.class_names, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path, preprocess: "Preprocess") -> "Callable[[Sequence], Tensor]":
    """What turns images into logits, by open_clip with its own transform; loading is strict, for both towers."""
    import open_clip
    import torch
    from safetensors.torch import load_file

    from robustft.models.open_clip_private import quiet

    with quiet():
        loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model, transform = loaded
    head = load_file(folder / HEAD)

    def logits(images: Sequence) -> "Tensor":
        with torch.no_grad():
            features = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
            return features @ head["weight"].T + head["bias"]

    return logits
