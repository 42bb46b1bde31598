"""Selective projection decay: a tensor's move is shortened only where the gradient points back to its anchor.

Tian, Liu, Kira: Rethinking weight decay for robust fine-tuning of foundation models, NeurIPS 2024.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robustft.training import fused
from robustft.training.constraint import Constraint


class SelectiveProjection(Constraint):
    """θ̃ − λ r (θ̃ − θ₀) after a step to θ̃ from θ, for each tensor whose gradient g has ⟨g, θ − θ₀⟩ > 0.

    r = clip((‖θ̃ − θ₀‖ − ‖θ − θ₀‖) / ‖θ̃ − θ₀‖, 0, 1). With λ = 1 such a tensor is no further from its anchor than
    before the step. λ is not multiplied by the learning rate. At θ = θ₀ nothing is shortened.

    Args:
        weight: λ ≥ 0.

    Attributes:
        opposed: which tensors have such a gradient in this step, in the order of ``pairs``.
        lengths: ‖θ − θ₀‖ before it.
    """

    opposed: Bool[Tensor, " tensors"]
    lengths: Float[Tensor, " tensors"]

    def __init__(self, anchor: nn.Module, head: bool, weight: float) -> None:
        super().__init__(anchor, head)
        self.weight = weight

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Look at the gradient, and add nothing."""
        lengths, slopes = [], []
        for piece in self.pieces:
            moves = self.moves(piece)
            lengths.append(fused.norms(moves))
            slopes.append(fused.dots(moves, self.gradients(piece)))
        self.lengths, self.opposed = torch.cat(lengths), torch.cat(slopes) > 0

    @torch.no_grad()
    def project(self) -> None:
        for piece in self.pieces:
            moves = self.moves(piece)
            lengths = fused.norms(moves)
            ratio = ((lengths - self.lengths[piece]) / lengths).clamp(0, 1)  # not a number where nothing has moved
            fused.scale_(moves, (self.weight * ratio * self.opposed[piece]).nan_to_num())
            fused.add_([weight for weight, _ in self.pairs[piece]], moves, -1)
