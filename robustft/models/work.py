"""How much arithmetic a forward pass is, counted as it runs."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def flops(forward: Callable[[], Tensor]) -> int:
    """Floating-point operations of the matrix products and attentions that a call makes, on any device.

    Example:
        >>> flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
        48
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that nobody counts, in the place of its parts
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops()
