"""Model Stock: per tensor, how far from the zero-shot weights to the mean of a few runs, by the angle between them.

Jang, Yun, Han: Model Stock: all we need is just a few fine-tuned models, ECCV 2024. The runs start from the same
weights and differ by their seeds; two will do.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from robustft.common.errors import UserError
from robustft.methods.weights import State, with_weights
from robustft.models.classifier import Classifier


def stock(checkpoints: Sequence[Path], load: Callable[[Path], Classifier], zeroshot: Classifier) -> Classifier:
    """The model at t · mean of ``checkpoints`` + (1 − t) · ``zeroshot``, t of every tensor its own, the head's too.

    t is held between 0 and 1: runs that have moved apart (a negative cosine) leave the zero-shot tensor as it is.

    Raises:
        UserError: there is one checkpoint only.
    """
    if len(checkpoints) < 2:
        raise UserError(f"checkpoints={checkpoints[0]}: one model. Model Stock needs two runs or more, of other seeds")
    states = [load(path).state_dict() for path in checkpoints]
    merged: State = {}
    for name, start in zeroshot.state_dict().items():
        anchor = start.double()
        moves = [state[name].double() - anchor for state in states]
        t = min(max(ratio(moves), 0.0), 1.0)
        mean = reduce(torch.add, (state[name].double() for state in states)) / len(states)
        merged[name] = mean if t == 1 else t * mean + (1 - t) * anchor
    return with_weights(zeroshot, merged)


def ratio(moves: Sequence[Tensor]) -> float:
    """t = k cos φ / ((k − 1) cos φ + 1) for k runs, cos φ the mean cosine over their pairs; 0 where one has not moved.

    Public code keeps small norms from being divided by (by 1e-8, by 1e-6), which sends tensors that have moved little
    back to the anchor; here their angle counts like that of others.

    Args:
        moves: what each run has added to the tensor, in float64.
    """
    if not all(bool(move.any()) for move in moves):
        return 0.0
    cosines = [_cosine(one, other) for one, other in combinations(moves, 2)]
    cosine, runs = sum(cosines) / len(cosines), len(moves)
    below = (runs - 1) * cosine + 1
    return runs * cosine / below if below else 0.0


def _cosine(one: Tensor, other: Tensor) -> float:
    """−1…1; of equal moves 1 to the bit, so that equal runs give themselves."""
    if torch.equal(one, other):
        return 1.0
    lengths = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    return min(max(float((one * other).sum() / lengths), -1.0), 1.0)
