"""Fast trainable projection: each tensor stays within a radius of its anchor, learnt from the training's gradients.

Tian, Liu, Smith, Kira: Fast trainable projection for robust fine-tuning, NeurIPS 2023.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustft.constraints.radius import LEAST, row_lengths
from robustft.training import fused
from robustft.training.constraint import Constraint

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of the radii's Adam


class TrainableProjection(Constraint):
    """θ₀ + clip(γ/N, 0, 1) · c after every step: c = θ̃ − θ₀, N the L1 length of its rows, γ a radius for each tensor.

    The radii begin at 1e-8, so that the first step is taken back. From the second on Adam moves them, by the gradient
    Σ_rows ⟨g, c/N⟩ of this step's g and the last step's c and N, from before c was shortened.

    Adam corrects its bias as if it had taken one step more, as the authors' code does: a radius first moves by 0.744 of
    its rate.

    Args:
        rate: of the radii's Adam, > 0.
        shrinking: k, 0…1: what gradients by which a radius shrinks are multiplied by; with 0 radii only grow.
    """

    from_anchor = True

    def __init__(self, anchor: nn.Module, head: bool, rate: float = 1e-2, shrinking: float = 1.0) -> None:
        super().__init__(anchor, head)
        self.rate, self.shrinking, self.steps = rate, shrinking, 0
        self.radii = self.first = self.second = torch.empty(0)
        self.slants: dict[str, Tensor] = {}  # c/N of the step before, by name

    def attach(self, student: nn.Module, device: torch.device) -> None:
        super().attach(student, device)
        self.radii, self.first, self.second = (value.to(device) for value in (self.radii, self.first, self.second))
        self.slants = {name: slant.to(device) for name, slant in self.slants.items()}

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Take the radii's gradient, and add nothing."""
        if self.steps == 0:
            return
        slopes = fused.dots(self.gradients(), list(self.slants.values()))
        self._move_radii(slopes.nan_to_num(0.0, 0.0, 0.0))  # of a step that float16 will skip

    def _move_radii(self, slopes: Float[Tensor, " tensors"]) -> None:
        """Adam's step, before the upper bound."""
        slopes = torch.where(slopes > 0, self.shrinking * slopes, slopes)
        self.first = self.first.lerp(slopes, 1 - BETAS[0])
        self.second = self.second.lerp(slopes.square(), 1 - BETAS[1])
        of_first, of_second = (1 - beta ** (self.steps + 1) for beta in BETAS)
        self.radii = self.radii - self.rate * (self.first / of_first) / ((self.second / of_second).sqrt() + EPSILON)

    @torch.no_grad()
    def project(self) -> None:
        if self.steps == 0:
            self.radii = self.pairs[0][1].new_full((len(self.pairs),), LEAST)
            self.first, self.second = torch.zeros_like(self.radii), torch.zeros_like(self.radii)
        radii = []
        for piece in self.pieces:
            weights, starts = zip(*self.pairs[piece], strict=True)
            moves = self.moves(piece)
            lengths = [row_lengths(move) for move in moves]
            fused.shift_(lengths, LEAST)
            longest = torch.stack([length.max() for length in lengths])
            radii.append(self.radii[piece].clamp(min=LEAST).minimum(longest))
            shares = fused.quotients(radii[-1].unbind(), lengths)
            fused.limit_(shares, 1.0)
            fused.put_sums_(weights, starts, shares, moves)
            fused.divide_(moves, lengths)
            self.slants |= zip(self.names[piece], moves, strict=True)  # in the place of the last step's
        self.radii = torch.cat(radii)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        moments = {"radii": self.radii, "first": self.first, "second": self.second}
        return {"steps": self.steps, "slants": self.slants, **moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.slants = state["steps"], dict(state["slants"])
        self.radii, self.first, self.second = state["radii"], state["first"], state["second"]
