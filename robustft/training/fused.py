"""Arithmetic over lists of tensors in a few kernels, as torch's optimizers do it: by its multi-tensor functions.

torch has no public name for them; this is the one file that knows the private ones, and ``tests/test_private_names.py``
says what each is taken for.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Tensors = Sequence[Tensor]


def norms(tensors: Tensors) -> Float[Tensor, " tensors"]:
    """Stack the Euclidean norm of each."""
    return torch.stack(torch._foreach_norm(list(tensors)))


def differences(a: Tensors, b: Tensors) -> list[Tensor]:
    """Give a − b for each pair."""
    return list(torch._foreach_sub(list(a), list(b)))


def products(a: Tensors, b: Tensors) -> list[Tensor]:
    """Give a · b for each pair, element by element."""
    return list(torch._foreach_mul(list(a), list(b)))


def add_(a: Tensors, b: Tensors, factor: float = 1) -> None:
    """Make each a into a + factor · b."""
    torch._foreach_add_(list(a), list(b), alpha=factor)


def scale_(tensors: Tensors, factors: Sequence[float] | Float[Tensor, " tensors"]) -> None:
    """Multiply each by a factor of its own."""
    each = list(factors.unbind()) if isinstance(factors, Tensor) else list(factors)
    torch._foreach_mul_(list(tensors), each)


def move_(means: Tensors, values: Tensors, weight: float) -> None:
    """Make each mean into mean + weight · (value − mean); means and values of one dtype, pair by pair."""
    torch._foreach_lerp_(list(means), list(values), weight)
