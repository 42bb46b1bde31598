"""Prompts as tokens: every template filled with every class's name, and the few of them that a batch needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import open_clip
from jaxtyping import Float, Int64
from torch import Tensor

from robustft.models.text_tower import TextTower

Template = str | Callable[[str], str]
Tokenizer = Callable[[list[str]], Int64[Tensor, "texts context"]]


AT_ONCE = 4  # classes whose prompts are encoded together


def part_of(classes: int, number: int, parts: int) -> range:
    """The classes of one of several parts, alike in size, which are encoded as they would be all together.

    Example:
        >>> [part_of(10, number, 2) for number in range(2)]
        [range(0, 8), range(8, 10)]
    """
    size = AT_ONCE * -(-classes // (AT_ONCE * parts))
    return range(min(classes, number * size), min(classes, (number + 1) * size))


class Chosen(NamedTuple):
    """The prompts of a batch, each once and none longer than the longest needs.

    Attributes:
        tokens: of the distinct prompts.
        which: row of ``tokens`` of each image.
    """

    tokens: Int64[Tensor, "distinct length"]
    which: Int64[Tensor, " batch"]


@dataclass(frozen=True)
class Prompts:
    """``templates`` × ``class_names``; they are tokenised when they are first asked for, and never change.

    Attributes:
        cut: whether tokens behind the end of a text may be left out (``TextTower.can_be_cut``).
    """

    tokenizer: Tokenizer
    class_names: Sequence[str]
    templates: Sequence[Template]
    cut: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prompts":
        return self

    @cached_property
    def tokens(self) -> Int64[Tensor, "classes templates context"]:
        """On the CPU."""
        texts = [t.format(c) if isinstance(t, str) else t(c) for c in self.class_names for t in self.templates]
        tokens = self.tokenizer(texts)
        tokens = tokens[:, : int(self._ends(tokens).max())]
        return tokens.view(len(self.class_names), len(self.templates), -1)

    def _ends(self, tokens: Int64[Tensor, "texts context"]) -> Int64[Tensor, " texts"]:
        """How many tokens of each text count."""
        return tokens.argmax(1) + 1 if self.cut else tokens.new_full((len(tokens),), tokens.shape[1])

    @cached_property
    def ends(self) -> Int64[Tensor, " texts"]:
        return self._ends(self.tokens.flatten(0, 1))

    def choose(self, labels: Int64[Tensor, " batch"], templates: Int64[Tensor, " batch"]) -> Chosen:
        """The prompt of class ``labels[i]`` in template ``templates[i]`` for every image; all on the CPU.

        Example:
            Of images of classes 0, 1, 0 in templates 2, 2, 2 the prompts are two, and ``which`` is 0, 1, 0.
        """
        distinct, which = (labels * len(self.templates) + templates).unique(return_inverse=True)
        longest = int(self.ends[distinct].max())
        return Chosen(self.tokens.flatten(0, 1)[distinct, :longest], which)

    def rows(self, clip: Any, classes: range | None = None) -> Float[Tensor, "classes features"]:
        """Unit-norm class embeddings of the prompt ensemble by ``clip``'s text tower, without a graph, on its device.

        They are computed as those of a zero-shot head are, to the bit.

        Args:
            classes: these alone, one or more, which begin where a ``part_of`` does; None: all.
        """

        def lookup(pairs: list[tuple[int, int]]) -> Int64[Tensor, "texts context"]:
            classes, templates = map(list, zip(*pairs, strict=True))
            return self.tokens[classes, templates]

        templates = [lambda c, t=t: (c, t) for t in range(len(self.templates))]
        columns = open_clip.build_zero_shot_classifier(
            TextTower(clip), lookup, range(len(self.class_names)) if classes is None else classes, templates,
            num_classes_per_batch=AT_ONCE, device=clip.logit_scale.device,
        )  # fmt: skip
        return columns.T.float().contiguous()
