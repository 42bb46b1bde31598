"""The forms in which a model can be exported: one module each.

Each says which `PACKAGES` it needs, whether it holds both `TOWERS`, and how it is loaded (`LOAD`, for the model card).
`refusal(source)` says, without torch, why a model cannot take that form, and what can be done instead; `write` writes a
folder; `read` loads it back, by that form's own means alone, and gives what turns images into logits.
"""

from importlib import import_module
from typing import Any

# In the code of a model card: the pixels of a file as the model is given them, see `data.own.reading`. From an open
# file, since Pillow turns some TIFFs twice that it opens by their path.
READ = """\
picture = Image.open(open("a.jpg", "rb"))
picture.load()
seen = ImageOps.exif_transpose(picture).convert("RGBA")  # upright, and on white
image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")"""

# By the name that is typed.
FORMATS = {"open_clip": "open_clip", "onnx": "onnx", "pt2": "pt2", "transformers": "transformers"}


def module_of(name: str) -> Any:
    """The module of a format."""
    return import_module(f"{__name__}.as_{FORMATS[name]}")
