"""LiNeS: what fine-tuning has changed, kept in the last layers and taken back towards the first.

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard: LiNeS: post-training layer scaling prevents forgetting and
enhances model merging, ICLR 2025.
"""

import re
from collections.abc import Iterable

from robustft.methods.weights import State, with_weights
from robustft.models.classifier import Classifier

PLACE = re.compile(r"(.*?)\.(\d+)\.")  # a stack of layers, and a layer's number in it


def scaled(zeroshot: Classifier, checkpoint: Classifier, alpha: float) -> Classifier:
    """The model whose tensors are ``factors`` of the way from ``zeroshot`` to ``checkpoint``.

    Args:
        alpha: of the first layer, 0…1; 1 is ``checkpoint``.
    """
    start, tuned = zeroshot.state_dict(), checkpoint.state_dict()
    merged: State = {}
    for name, factor in factors(tuned, alpha).items():
        # What has all the weight is left to the bit, zeros of either sign included.
        merged[name] = (
            tuned[name] if factor == 1 else (1 - factor) * start[name].double() + factor * tuned[name].double()
        )
    return with_weights(checkpoint, merged)


def factors(names: Iterable[str], alpha: float) -> dict[str, float]:
    """α + (1 − α) · l / (L − 1) for tensors of layer l = 0 … L − 1, and α for all others, head and projection too.

    L is how many layers the tensor's own stack has: where a text tower is part of the model, its layers count by
    themselves.

    Example:
        >>> names = ["visual.proj", *(f"visual.transformer.resblocks.{l}.ln_1.weight" for l in range(3))]
        >>> list(factors(names, 0.5).values())
        [0.5, 0.5, 0.75, 1.0]
    """
    places = {name: PLACE.match(name) for name in names}
    last: dict[str, int] = {}
    for place in filter(None, places.values()):
        last[place[1]] = max(last.get(place[1], 0), int(place[2]))
    return {
        name: alpha if place is None else alpha + (1 - alpha) * int(place[2]) / max(1, last[place[1]])
        for name, place in places.items()
    }
