"""How much arithmetic a forward pass is, counted as it runs."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops(forward: Callable[[], Tensor]) -> int:
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
