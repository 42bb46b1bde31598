"""Constraints in weight space: what keeps weights near where they came from, whatever the method."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.training import fused

PIECE = 2**22  # values


def pieces_of(sizes: Sequence[int], most: int = PIECE) -> list[slice]:
    """Cut a list of tensors into ranges of at most ``most`` values, one that is larger by itself.

    Example:
        >>> pieces_of([2, 3, 9, 1], most=5)
        [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    found, first, values = [], 0, 0
    for place, size in enumerate(sizes):
        if values and values + size > most:
            found.append(slice(first, place))
            first, values = place, 0
        values += size
    return [*found, slice(first, len(sizes))]


class Constraint:
    """Keeps the student's weights near an anchor; combines with every method, and with other constraints.

    Of several the order is that of the list, within each of these places of a step: a term of the gradient
    (``add_gradient``), clipping, the optimiser (the first one that a constraint brings), a projection (``project``).

    Example:
        >>> class Ball(Constraint):
        ...     "Every tensor stays within ``radius`` of its anchor (in L2)."
        ...
        ...     def __init__(self, anchor: nn.Module, head: bool, radius: float) -> None:
        ...         super().__init__(anchor, head)
        ...         self.radius = radius
        ...
        ...     def project(self) -> None:
        ...         with torch.no_grad():
        ...             for weight, start in self.pairs:
        ...                 move = weight - start
        ...                 weight.copy_(start + move * (self.radius / move.norm().clamp(min=self.radius)))

    Args:
        anchor: a model with the student's parameters; it is copied (``constraint.anchor``: zeroshot or init).
        head: whether the head is held too (``constraint.head``).

    Attributes:
        pairs: (weight, anchor) of every parameter that is held, on the weights' device; while training.
        names: of these, in their order.
        pieces: ranges of ``pairs``, each of some millions of values: what is made of one piece at a time takes no copy
            of the model, and is still in a CPU's cache when it is used.
    """

    from_anchor = False  # whether training has to start at the anchor: the first step goes back to it

    def __init__(self, anchor: nn.Module, head: bool = True) -> None:
        named = anchor.named_parameters()
        self.anchors = {name: p.detach().clone() for name, p in named if head or not name.startswith("head.")}
        self.pairs: list[tuple[nn.Parameter, Tensor]] = []
        self.names: list[str] = []
        self.pieces: list[slice] = []
        self.stepped_by: torch.optim.Optimizer | None = None

    def attach(self, student: nn.Module, device: torch.device) -> None:
        """Find the student's parameters; is called when training starts.

        Raises:
            UserError: none of them is both held and trained.
        """
        weights = dict(student.named_parameters())
        self.anchors = {name: start.to(device) for name, start in self.anchors.items()}
        self.names = [name for name in self.anchors if name in weights and weights[name].requires_grad]
        self.pairs = [(weights[name], self.anchors[name]) for name in self.names]
        if not self.pairs:
            raise UserError(
                f"{type(self).__name__} has nothing to hold: none of the weights that are trained. Leave out the"
                " constraint, or change constraint.head or train"
            )
        self.pieces = pieces_of([start.numel() for _, start in self.pairs])

    def check_start(self) -> None:
        """Refuse a start that would be lost.

        Raises:
            UserError: ``from_anchor``, and the weights are elsewhere.
        """
        if self.from_anchor and any(not torch.equal(weight, start) for weight, start in self.pairs):
            raise UserError(
                f"{type(self).__name__} begins by taking the weights back to its anchor, and training starts elsewhere"
                " (init=): add constraint.anchor=init"
            )

    def moves(self, piece: slice = slice(None)) -> list[Any]:
        """θ − θ₀ of ``pairs``, or of a piece of them."""
        return fused.differences(*zip(*self.pairs[piece], strict=True))

    def gradients(self, piece: slice = slice(None)) -> list[Any]:
        """Of ``pairs`` or a piece of them, as they are when ``add_gradient`` is called; zero where the loss has not
        reached a weight.
        """
        for weight, _ in self.pairs[piece]:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return [weight.grad for weight, _ in self.pairs[piece]]

    def decay_rates(self) -> list[float]:
        """How fast ``pairs`` decay in this step, for a weight of 1: their learning rates, as AdamW takes them, where a
        group of parameters does not say otherwise (``decay_scale``).
        """
        assert self.stepped_by is not None
        groups = self.stepped_by.param_groups  # other objects once a state has been loaded
        rates = {id(p): float(g["lr"]) * g.get("decay_scale", 1.0) for g in groups for p in g["params"]}
        return [rates.get(id(weight), 0.0) for weight, _ in self.pairs]

    def add_gradient(self) -> None:
        """Add a term's gradient to ``weight.grad``, before clipping."""

    def optimizer(self, groups: Sequence[Any], settings: Mapping[str, Any]) -> torch.optim.Optimizer | None:
        """An optimiser in AdamW's place, of its arguments (lr, betas, weight_decay); None: AdamW."""
        return None

    def project(self) -> None:
        """Move the weights, after every step of the optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run needs besides weights and optimiser."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
