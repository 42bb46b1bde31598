"""The text tower that goes with a model: a trained one is saved with it, a frozen one named and found again."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from jaxtyping import Float
from torch import Tensor, nn

from robustft.common.cache import cache_folder, digest, optional, remembered
from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.models.names import State

SCALES = ("logit_scale", "logit_bias")  # belong to both towers of a CLIP
OURS = ("visual.", "head.")  # names of what a classifier has besides a text tower
EMBEDDED = "embedded"
ADVICE = "model.pretrained=FILE names another place"


@dataclass(frozen=True)
class TextSource:
    """Where a frozen text tower comes from.

    Attributes:
        architecture: open_clip's name of the whole CLIP.
        pretrained: an open_clip tag, "embedded", or the name of a weights file (without its folder: that says
            something of a machine, and nothing of the model).
        sha256: of the tower's tensors in float32, see ``digest_of``.
    """

    architecture: str
    pretrained: str
    sha256: str

    @classmethod
    def of(cls, architecture: str, pretrained: str, clip: nn.Module) -> "TextSource":
        """That of a CLIP which was made from ``pretrained``; where a file lies is kept in the user's cache."""
        tagged = pretrained == EMBEDDED or pretrained in open_clip.list_pretrained_tags_by_model(architecture)
        source = cls(architecture, pretrained if tagged else Path(pretrained).name, digest_of(clip))
        if not tagged:
            with optional(source.note.parent):
                write(source.note, json.dumps({"file": str(Path(pretrained).resolve())}))
        return source

    @property
    def note(self) -> Path:
        """The file in the user's cache that says where on this machine a weights file was."""
        return cache_folder() / "text" / f"{self.sha256}.json"


def digest_of(clip: nn.Module) -> str:
    """SHA-256 of a text tower: name, shape and float32 values of its tensors, in the order of their names."""
    found = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        if not name.startswith("visual.") and name not in SCALES:
            found.update(f"{name}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().float().contiguous().numpy().data)
    return found.hexdigest()


def without_visual(clip: Any) -> nn.Module:
    """A CLIP as its text tower alone: it encodes text, and its tensors have open_clip's own names."""
    clip.visual = None
    return clip.eval()


def find(
    source: TextSource, create: Callable[[str, str], nn.Module], near: Sequence[Path] = (), advice: str = ADVICE
) -> nn.Module:
    """The text tower that ``source`` names, without its image tower, on the CPU.

    A tag is looked up where open_clip keeps it, else fetched; a file is looked for at ``near``, then where this
    machine's cache says it was.

    Args:
        create: makes the CLIP of an architecture and a tag or file.
        near: folders or files that may be it.
        advice: what else can be done where it is not found, for the message.

    Raises:
        UserError: it is not found, or what is found is another tower.
    """
    name = source.pretrained
    if name == EMBEDDED or name in open_clip.list_pretrained_tags_by_model(source.architecture):
        places: list[str] = [name]
    else:
        noted = [Path(file)] if (file := _noted(source)) else []
        files = [path / name if path.is_dir() else path for path in (*near, *noted)]
        places = [str(path) for path in dict.fromkeys(files) if path.exists()]
    other = False
    for place in places:
        tower = without_visual(create(source.architecture, place))
        if digest_of(tower) == source.sha256:
            return tower
        other = True
    why = "what lies there now is another one" if other else "it is not there any more"
    raise UserError(
        f"the text tower of this model was that of {name} ({source.architecture}, SHA-256 {source.sha256[:12]}…), and"
        f" {why}. Put that file beside the model; {advice}"
    )


def _noted(source: TextSource) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(source.note.read_text("utf-8"))["file"])
    return None


def saved_names(state: Mapping[str, Tensor]) -> State:
    """A classifier's tensors as they are saved: those of a trained text tower under open_clip's names."""
    return {name.removeprefix("text.") if name.startswith("text.") else name: value for name, value in state.items()}


def own_names(state: Mapping[str, Tensor]) -> State:
    """The reverse of ``saved_names``."""
    return {name if name.startswith(OURS) else f"text.{name}": value for name, value in state.items()}


def kept_rows(
    source: TextSource, prompts: Sequence[str], tokens: Tensor, cache: Path, make: Callable[[], Tensor]
) -> Float[Tensor, "classes features"]:
    """Embeddings of classes, made once for a text tower and its prompts: the tower is not loaded where they are known.

    Args:
        tokens: of some of the prompts: another tokenizer makes other embeddings.
    """
    key = digest(source.architecture, source.sha256, list(prompts), tokens.tolist())
    return remembered(cache / f"{key}.safetensors", lambda: {"rows": make()})["rows"]
