"""How far a tensor may be from its anchor: its length by rows or as a whole, and the projection to a radius."""

import torch
from torch import Tensor

LEAST = 1e-8  # of a radius, and what is added to lengths before a radius is divided by them


def row_lengths(move: Tensor) -> Tensor:
    """L1 length of each row, [rows, 1, …]: a row is an index of the first dimension, a vector is one row (MARS)."""
    if move.dim() < 2:
        return move.abs().sum()
    return move.abs().sum(dim=tuple(range(1, move.dim())), keepdim=True)


def whole_length(move: Tensor) -> Tensor:
    """L2 length of the whole tensor."""
    return torch.linalg.vector_norm(move)


def shortened(move: Tensor, lengths: Tensor, radius: Tensor) -> Tensor:
    """``move`` where it is within ``radius``, else on its way there; differentiable in the radius.

    Args:
        lengths: of ``move``, LEAST added to them.
    """
    return (radius / lengths).clamp(0, 1) * move
