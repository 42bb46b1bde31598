"""What is said about a scene: captions for pre-training and prompts for the zero-shot head."""

from collections.abc import Sequence

import torch

from robustft.data.scenes.generate import Rendered
from robustft.data.scenes.recipes import CLASSES, COLOURS, CONTEXTS, STYLES

PLACES = ("in water", "on grass", "on sand", "on brick", "on wood", "in snow", "in the sky", "at night")
MEDIA = (
    ("photo", "picture"), ("sketch", "drawing"), ("cartoon",), ("painting",), ("mosaic",), ("negative",),
)  # fmt: skip
TEMPLATES = (
    "a {}.", "the {}.", "a photo of a {}.", "a photo of the {}.", "a picture of a {}.",
    "a picture of the {}.", "a sketch of a {}.", "a drawing of a {}.", "a cartoon of a {}.",
    "a painting of a {}.", "a mosaic of a {}.", "a negative of a {}.",
)  # fmt: skip
TASKS = {  # what else a scene shows and no fine-tuning asks for: names of what is told apart, prompts
    "context": (PLACES, ("a thing {}.", "the thing {}.")),
    "style": (tuple(names[0] for names in MEDIA), ("a {} of a thing.", "a {} of the thing.")),
}


def vocabulary() -> list[str]:
    """Every word of every caption and prompt, each once, in a fixed order."""
    sentences = (*CLASSES, *COLOURS, *STYLES, *PLACES, *sum(MEDIA, ()), "a the of thing")
    return list(dict.fromkeys(" ".join(sentences).split()))


def captions(scenes: Rendered, rows: Sequence[int], generator: torch.Generator) -> list[str]:
    """One sentence an image, naming its style in 80% of cases, the place in 70%, the colour in 50%, and
    the object in 92% (else "thing")."""
    chances = torch.rand(len(rows), 6, generator=generator).tolist()
    return [caption(scenes, row, chance) for row, chance in zip(rows, chances, strict=True)]


def caption(scenes: Rendered, row: int, chance: list[float]) -> str:
    style, place, colour, named, article, synonym = chance
    media = MEDIA[scenes.styles[row]]
    words = [f"a {media[int(synonym * len(media))]} of"] if style < 0.8 else []
    words.append("a" if article < 0.7 else "the")
    if colour < 0.5:
        words.append(list(COLOURS)[scenes.colours[row]])
    words.append(CLASSES[scenes.labels[row]] if named < 0.92 else "thing")
    if place < 0.7:
        words.append(PLACES[scenes.contexts[row]])
    return " ".join(words)


assert len(PLACES) == len(CONTEXTS) and len(MEDIA) == len(STYLES)
