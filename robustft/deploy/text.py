"""The whole CLIP of a run: its image tower beside the text tower that it belongs to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from robustft.common.errors import UserError
from robustft.deploy.again import model_settings
from robustft.deploy.model import Model
from robustft.deploy.source import Source, find
from robustft.inputs import make_tokenizer
from robustft.models.files import weights_file
from robustft.models.text import digest_of
from robustft.models.weights import create_clip, fit
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
        named: a tag of open_clip or a file with the text tower; None: the weights that the run started from.

    Raises:
        UserError: nothing tells them, they cannot be fetched, or do not fit.
    """
    tokenizer, frozen = None, None
    if named is None:
        named, seed, settings = _started_from(source)
        tokenizer, frozen = make_tokenizer(settings), model.architecture.text
    else:
        seed = 0
    clip: Any = create_clip(source.architecture, named, seed)
    if frozen is not None and digest_of(clip) != frozen.sha256:
        raise UserError(f"{source.folder}: the text tower in {named} is another one than the run started from. {HINT}")
    clip.visual.load_state_dict(model.visual.state_dict())
    trained = model.text is not None
    if model.text is not None:
        fit(clip, {**clip.state_dict(), **model.text.state_dict()}, source.file, source.architecture)
    own = tokenizer is not None
    return Whole(clip.eval(), tokenizer if own else open_clip_tokenizer(source.architecture), own, named, trained)


def _started_from(source: Source, steps: int = 8) -> tuple[str | None, int, Any]:
    """The weights that a run began with, through runs that began with the model of another one."""
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
    return named, source.config["seed"], settings
