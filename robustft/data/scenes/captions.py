"""What is said about a scene: captions for pre-training, prompts for zero-shot heads of its class, place and style."""

from collections.abc import Sequence

import torch

from robustft.data.scenes.generate import Rendered
from robustft.data.scenes.recipes import CLASSES, COLOURS, CONTEXTS, STYLES

PLACES = dict(
    zip(
        CONTEXTS,
        ("in water", "on grass", "on sand", "on brick", "on wood", "in snow", "in the sky", "at night"),
        strict=True,
    )
)
MEDIA = {  # the first one says exactly which style it is
    "photo": ("photo", "picture"),
    "pencil": ("pencil sketch", "sketch", "pencil drawing"),
    "ink": ("ink sketch", "sketch", "ink drawing", "drawing"),
    "charcoal": ("charcoal sketch", "charcoal drawing", "drawing"),
    "chalk": ("chalk sketch", "chalk drawing", "drawing"),
    "blueprint": ("blueprint sketch", "blueprint", "sketch"),
    "marker": ("marker sketch", "sketch", "marker drawing", "drawing"),
    "cartoon": ("cartoon",),
    "painting": ("painting",),
    "watercolour": ("watercolour", "watercolour painting"),
    "mosaic": ("mosaic",),
    "poster": ("poster",),
    "comic": ("comic", "comic picture"),
    "stitch": ("stitch", "stitch picture"),
    "neon": ("neon", "neon picture"),
}
TEMPLATES = (
    "a {}.", "the {}.", "a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "a sketch of a {}.",
    "a drawing of a {}.", "a pencil drawing of a {}.", "a chalk drawing of a {}.", "a cartoon of a {}.",
    "a painting of a {}.", "a watercolour of a {}.", "a mosaic of a {}.", "a poster of a {}.",
)  # fmt: skip
TASKS = {  # what else a scene shows and no fine-tuning asks for: what is told apart, its names in prompts, prompts
    "context": (
        tuple(PLACES.values()),
        ("a thing {}.", "the thing {}.", "a photo of a thing {}.", "a sketch of a thing {}."),
    ),
    "style": (tuple(names[0] for names in MEDIA.values()), ("a {} of a thing.", "a {} of the thing.")),
}  # fmt: skip


def vocabulary() -> list[str]:
    """Every word of every caption and prompt, each once, in a fixed order."""
    sentences = (*CLASSES, *COLOURS, *PLACES.values(), *sum(MEDIA.values(), ()), "a the of thing")
    return list(dict.fromkeys(" ".join(sentences).split()))


def captions(scenes: Rendered, rows: Sequence[int], generator: torch.Generator) -> list[str]:
    """One sentence an image, naming its style in 80% of cases, the place in 70%, the colour in 50%, and
    the object in 92% (else "thing")."""
    chances = torch.rand(len(rows), 6, generator=generator).tolist()
    return [caption(scenes, row, chance) for row, chance in zip(rows, chances, strict=True)]


def caption(scenes: Rendered, row: int, chance: list[float]) -> str:
    style, place, colour, named, article, synonym = chance
    media = MEDIA[STYLES[scenes.styles[row]]]
    words = [f"a {media[int(synonym * len(media))]} of"] if style < 0.8 else []
    words.append("a" if article < 0.7 else "the")
    if colour < 0.5:
        words.append(list(COLOURS)[scenes.colours[row]])
    words.append(CLASSES[scenes.labels[row]] if named < 0.92 else "thing")
    if place < 0.7:
        words.append(PLACES[CONTEXTS[scenes.contexts[row]]])
    return " ".join(words)


assert tuple(MEDIA) == STYLES
