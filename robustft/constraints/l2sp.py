"""L2-SP: decay towards the pre-trained weights in place of zero, through the gradient or decoupled from it.

Li, Grandvalet, Davoine: Explicit inductive bias for transfer learning with convolutional networks, ICML 2018. The two
are different methods under Adam, which divides gradients by their size: in the gradient's form the weight hardly
matters once it dominates.
"""

import torch
from torch import nn

from robustft.training import fused
from robustft.training.constraint import Constraint


class L2SP(Constraint):
    """Add α · Σ ‖θ − θ₀‖² to the loss: a sum over all held weights, without ½ or mean.

    Args:
        weight: α ≥ 0.
    """

    def __init__(self, anchor: nn.Module, head: bool, weight: float) -> None:
        super().__init__(anchor, head)
        self.weight = weight

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add 2α(θ − θ₀)."""
        for piece in self.pieces:
            fused.add_(self.gradients(piece), self.moves(piece), 2 * self.weight)


class DecoupledL2SP(Constraint):
    """After a step at the learning rate η take θ to θ − ηλ(θ − θ₀), as AdamW's decay goes to zero.

    Args:
        weight: λ ≥ 0.
    """

    def __init__(self, anchor: nn.Module, head: bool, weight: float) -> None:
        super().__init__(anchor, head)
        self.weight = weight

    @torch.no_grad()
    def project(self) -> None:
        rates = [rate * self.weight for rate in self.decay_rates()]
        for piece in self.pieces:
            moves = self.moves(piece)
            fused.scale_(moves, rates[piece])
            fused.add_([weight for weight, _ in self.pairs[piece]], moves, -1)
