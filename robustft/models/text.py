"""The text tower that goes with a model: one that is trained is saved with it, under open_clip's own names."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from robustft.models.names import State

OURS = ("visual.", "head.")  # names of what a classifier has besides a text tower


def without_visual(clip: Any) -> nn.Module:
    """A CLIP as its text tower alone: it encodes text, and its tensors have open_clip's own names."""
    clip.visual = None
    return clip.eval()


def saved_names(state: Mapping[str, Tensor]) -> State:
    """A classifier's tensors as they are saved: those of a trained text tower under open_clip's names."""
    return {name.removeprefix("text.") if name.startswith("text.") else name: value for name, value in state.items()}


def own_names(state: Mapping[str, Tensor]) -> State:
    """The reverse of ``saved_names``."""
    return {name if name.startswith(OURS) else f"text.{name}": value for name, value in state.items()}
