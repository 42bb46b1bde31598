"""Arithmetic over lists of tensors, as torch's optimizers do it: by its multi-tensor functions.

On a GPU that is a few kernels, where the shapes of a pair are equal; elsewhere a loop in C++.

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


def dots(a: Tensors, b: Tensors) -> Float[Tensor, " tensors"]:
    """Stack the sum of a · b over all elements for each pair; their product is not kept."""
    return torch.stack([torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in zip(a, b, strict=True)])


def differences(a: Tensors, b: Tensors) -> list[Tensor]:
    """Give a − b for each pair."""
    return list(torch._foreach_sub(list(a), list(b)))


def quotients(a: Tensors, b: Tensors) -> list[Tensor]:
    """Give a / b for each pair, element by element."""
    return list(torch._foreach_div(list(a), list(b)))


def add_(a: Tensors, b: Tensors, factor: float = 1) -> None:
    """Make each a into a + factor · b."""
    torch._foreach_add_(list(a), list(b), alpha=factor)


def divide_(a: Tensors, b: Tensors) -> None:
    """Make each a into a / b, element by element."""
    torch._foreach_div_(list(a), list(b))


def put_sums_(tensors: Tensors, starts: Tensors, a: Tensors, b: Tensors) -> None:
    """Make each tensor start + a · b, element by element; ``a`` is broadcast."""
    for tensor, start, x, y in zip(tensors, starts, a, b, strict=True):  # of other shapes, torch would do no better
        torch.addcmul(start, x, y, out=tensor)


def shift_(tensors: Tensors, by: float) -> None:
    """Add a number to all elements."""
    torch._foreach_add_(list(tensors), by)


def limit_(tensors: Tensors, most: float) -> None:
    """Make what is above ``most`` that."""
    torch._foreach_clamp_max_(list(tensors), most)


def scale_(tensors: Tensors, factors: Sequence[float] | Float[Tensor, " tensors"]) -> None:
    """Multiply each by a factor of its own."""
    each = list(factors.unbind()) if isinstance(factors, Tensor) else list(factors)
    torch._foreach_mul_(list(tensors), each)


def move_(means: Tensors, values: Tensors, weight: float) -> None:
    """Make each mean into mean + weight · (value − mean); means and values of one dtype, pair by pair."""
    torch._foreach_lerp_(list(means), list(values), weight)
