"""The pre-trained text tower for methods that compare image features by texts: frozen, never saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.models.files import weights_file
from robustft.models.prompts import Template, Tokenizer
from robustft.models.text import without_visual
from robustft.models.text_tower import TextTower
from robustft.models.weights import create_clip, load_classifier, text_tower
from robustft.models.zeroshot import open_clip_tokenizer, own_model, text_rows


@dataclass(frozen=True)
class FrozenText:
    """A text tower that is never trained.

    Attributes:
        clip: a CLIP without its image tower.
        scale: s = exp(logit_scale), of similarities to texts.
    """

    clip: nn.Module
    tokenizer: Tokenizer
    scale: float

    def to(self, device: torch.device) -> None:
        """Move its weights."""
        self.clip.to(device)

    def encode(self, tokens: Int64[Tensor, "texts length"]) -> Float[Tensor, "texts features"]:
        """Unit-norm embeddings, without a graph."""
        with torch.no_grad():
            return F.normalize(TextTower(self.clip).encode(tokens).float(), dim=-1)

    def random_tokens(self, texts: int, length: int, random: torch.Generator) -> Int64[Tensor, "texts tokens"]:
        """Texts of ``length`` tokens drawn uniformly from all but start and end, these two around them.

        Raises:
            UserError: the tower has no tokens of start and end, or no place for so many.
        """
        tower = TextTower(self.clip)
        empty = self.tokenizer([""])[0]
        if not tower.can_be_cut:
            raise UserError("random texts need a text tower that reads up to an end-of-text token, as CLIP's do")
        if length + 2 > len(empty):
            raise UserError(f"a text of {length} tokens, start and end do not fit into the {len(empty)} of this model")
        start, end = int(empty[0]), int(empty.max())
        drawn = torch.randint(end - 1, (texts, length), generator=random, device=random.device)
        drawn += drawn >= start
        return F.pad(F.pad(drawn, (1, 0), value=start), (0, 1), value=end)

    def contexts(
        self,
        class_names: Sequence[str],
        templates: Sequence[Template],
        cache: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "templates features"]:
        """s times the unit mean over classes of the unit embeddings of each template's prompts; see ``text_rows``.

        They are a zero-shot head with the parts of classes and templates exchanged.
        """
        filled: list[Any] = [_filling(name) for name in class_names]
        names: list[Any] = list(templates)
        return self.scale * text_rows(self.clip, self.tokenizer, names, filled, cache, device)


def _filling(class_name: str) -> Callable[[Template], str]:
    return lambda template: template.format(class_name) if isinstance(template, str) else template(class_name)


def frozen_text(architecture: str, pretrained: str | None, seed: int, tokenizer: Tokenizer | None = None) -> FrozenText:
    """The text tower that belongs to a model, on the CPU.

    Raises:
        UserError: see ``create_clip``, and ``text_tower`` of a model left by a run.
    """
    if own_model(architecture, pretrained) is None:
        clip: Any = without_visual(create_clip(architecture, pretrained, seed))
    else:
        file = weights_file(str(pretrained))
        clip = text_tower(load_classifier(file), near=(file.parent,))
    clip = clip.eval().requires_grad_(False)
    return FrozenText(clip, tokenizer or open_clip_tokenizer(architecture), float(clip.logit_scale.exp()))
