"""The whole CLIP of a run: its image tower beside the text tower that it belongs to."""

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from robustft.common.errors import UserError
from robustft.components import make_tokenizer
from robustft.deploy.again import model_settings, seed_of
from robustft.deploy.model import Model
from robustft.deploy.source import Source, find
from robustft.models.files import weights_file
from robustft.models.weights import create_clip, text_tower
from robustft.models.zeroshot import open_clip_tokenizer, own_model

HINT = "--text TAG_OR_FILE names the weights that the run started from"


@dataclass(frozen=True)
class Whole:
    """A CLIP with the image tower of a run.

    Attributes:
        clip: open_clip's, on the CPU.
        tokenizer: turns prompts into what its text tower takes.
        own_tokenizer: the model has one of its own, which open_clip does not know.
        weights: where the text tower, and the image tower's start, came from; None: drawn at random.
        trained: the text tower was trained along with the image tower.
    """

    clip: nn.Module
    tokenizer: Any
    own_tokenizer: bool
    weights: str | None
    trained: bool


def whole_clip(source: Source, model: Model, named: str | None = None) -> Whole:
    """Put the text tower beside the image tower of ``model``.

    Args:
        named: a tag of open_clip or a file with the text tower; None: the one that was trained with it, or that the
            model's file names; older files do not, then that of the weights the run started from.

    Raises:
        UserError: nothing tells them, they cannot be fetched, do not fit, or are others than they were.
    """
    tokenizer, text, trained = None, model.architecture.text, model.text is not None
    if trained and named is not None:
        raise UserError(f"--text={named}: the text tower was trained with the image tower, and lies in {source.file}")
    if named is None and source.config is not None:
        tokenizer = make_tokenizer(model_settings(source))
    if named is None and (trained or text is not None):
        clip: Any = deepcopy(text_tower(model, near=_near(source), advice=HINT))
        clip.visual = deepcopy(model.visual)
        named = None if text is None else text.pretrained
    else:
        seed = 0
        if named is None:
            named, seed = _started_from(source)
        clip = create_clip(source.architecture, named, seed)
        clip.visual.load_state_dict(model.visual.state_dict())
    own = tokenizer is not None
    tokenizer = tokenizer if own else open_clip_tokenizer(source.architecture)
    return Whole(clip.eval(), tokenizer, own, named, trained)


def _near(source: Source) -> list[Path]:
    """Where a weights file may lie besides the place that this machine's cache knows."""
    with suppress(UserError):
        named, _ = _started_from(source)
        return [source.folder, *([] if named is None else [weights_file(named)])]
    return [source.folder]


def _started_from(source: Source, steps: int = 8) -> tuple[str | None, int]:
    """The weights that a run began with, and its seed, through runs that began with the model of another one."""
    if source.config is None:
        raise UserError(f"{source.file}: nothing beside it says which text tower belongs to it. {HINT}")
    settings = model_settings(source)
    named = settings.pretrained
    if own_model(source.architecture, named) is not None:
        if steps == 0:
            raise UserError(f"{source.folder}: it goes back to itself. {HINT}")
        return _started_from(find(named), steps - 1)
    known = (None, "embedded", *open_clip.list_pretrained_tags_by_model(source.architecture))
    if named not in known and not weights_file(named).is_file():
        raise UserError(f"{source.folder}: the weights that it started from are gone ({Path(named)}). {HINT}")
    return named, seed_of(source)
