"""The forms in which a model can be exported: one module each.

Each says which `PACKAGES` it needs, whether it holds both `TOWERS`, and how it is loaded (`LOAD`, for the model card).
`refusal(source)` says, without torch, why a model cannot take that form, and what can be done instead; `write` writes a
folder; `read` loads it back, by that form's own means alone, and gives what turns images into logits.
"""

from importlib import import_module
from typing import Any

# By the name that is typed.
FORMATS = {"open_clip": "open_clip", "onnx": "onnx", "pt2": "pt2", "transformers": "transformers"}


def module_of(name: str) -> Any:
    """The module of a format."""
    return import_module(f"{__name__}.as_{FORMATS[name]}")
