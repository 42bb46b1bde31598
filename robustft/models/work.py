"""How much work a forward pass is: its arithmetic, counted as it runs, or what a benchmark measures instead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Forward = Callable[[], Tensor]
Compare = Callable[[Forward, Forward], float]


def flops(forward: Forward) -> int:
    """Floating-point operations of the matrix products and attentions that a call makes, on any device.

    Example:
        >>> flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
        48
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention of CPUs is one operation that nobody counts
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops()


def _by_arithmetic(part: Forward, whole: Forward) -> float:
    return flops(part) / flops(whole)


_compare: ContextVar[Compare] = ContextVar("what forward passes are compared by", default=_by_arithmetic)


def share(part: Forward, whole: Forward) -> float:
    """How much of one forward pass's work another is: of its arithmetic, unless ``compared_by`` says otherwise.

    Example:
        >>> share(lambda: torch.ones(1, 3) @ torch.ones(3, 4), lambda: torch.ones(2, 3) @ torch.ones(3, 4))
        0.5
    """
    return _compare.get()(part, whole)


@contextmanager
def compared_by(compare: Compare) -> Iterator[None]:
    """Have ``share`` ask another question for a while: by time, say.

    Args:
        compare: how much of the second forward pass's work the first is.

    Example:
        >>> with compared_by(lambda part, whole: 0.25):
        ...     share(lambda: torch.ones(1), lambda: torch.ones(1))
        0.25
    """
    before = _compare.set(compare)
    try:
        yield
    finally:
        _compare.reset(before)
