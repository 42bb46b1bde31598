"""TPGM: each tensor of a fine-tuned model goes back towards the zero-shot one, to a radius learnt on the hold-out.

Tian, Dai, Ma, He, Liu, Kira: Trainable projected gradient method for robust fine-tuning, CVPR 2023. The authors learn
the radii of ImageNet on its validation set, which they report too; here they see hold-out images alone.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustft.constraints.radius import LEAST, row_lengths, shortened, whole_length
from robustft.data.sets import Batch
from robustft.models.classifier import Classifier

log = logging.getLogger(__name__)

Weights = Mapping[str, Tensor]
LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {"l2": whole_length, "mars": row_lengths}


def projected(
    zeroshot: Classifier,
    checkpoint: Classifier,
    holdout: Callable[[int, int], Iterator[Batch]],
    iterations: int = 200,
    images: int = 64,
    rate: float = 1e-2,
    norm: str = "l2",
) -> Classifier:
    """``checkpoint`` with every tensor within its radius of ``zeroshot``; the radii minimise the cross-entropy.

    Args:
        holdout: gives so many batches of so many hold-out images. They have to be those that ``checkpoint`` was not
            trained on: with the data.holdout and data.holdout_seed of its run.
        images: of a batch.
        rate: of the radii's Adam.
        norm: "l2", of a whole tensor, or "mars", the L1 length of each of its rows.
    """
    batches = holdout(iterations, images)
    first = next(batches)
    device = first.images.device
    model, anchor = deepcopy(checkpoint.without_text()).to(device).eval(), dict(zeroshot.named_parameters())
    tuned = {name: weight.detach() for name, weight in model.named_parameters()}
    radii = Radii({name: anchor[name].detach().to(device) for name in tuned}, tuned, norm)

    def loss(weights: Weights, batch: Batch) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, dict(weights), (batch.images,)), batch.labels)

    found = torch.stack(list(radii.learn(loss, _with(first, batches), rate)))
    tenth = max(1, len(found) // 10)
    log.info("cross-entropy on the hold-out: %.4f, then %.4f", found[:tenth].mean(), found[-tenth:].mean())
    with torch.no_grad():
        model.load_state_dict({**model.state_dict(), **radii.weights()})
    return model.cpu()


def _with(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest


class Radii:
    """A radius for every tensor, and the weights that it leaves: θ₀ + clip(γ/(N + 1e-8), 0, 1) · (θ̃ − θ₀).

    Args:
        starts: θ₀.
        tuned: θ̃, of the same names.
        norm: see ``projected``.

    Attributes:
        radii: γ of each name; half of the least N to begin with.
    """

    def __init__(self, starts: Weights, tuned: Weights, norm: str) -> None:
        self.starts = starts
        self.moves = {name: tuned[name] - start for name, start in starts.items()}
        self.lengths = {name: LENGTHS[norm](move) for name, move in self.moves.items()}
        self.radii = {name: (found.min() / 2).requires_grad_() for name, found in self.lengths.items()}

    def weights(self) -> dict[str, Tensor]:
        """θ, differentiable in the radii, which are brought between 1e-8 and the largest N first."""
        with torch.no_grad():
            for name, radius in self.radii.items():
                radius.clamp_(min=LEAST).clamp_(max=self.lengths[name].max())
        return {
            name: start + shortened(self.moves[name], self.lengths[name] + LEAST, self.radii[name])
            for name, start in self.starts.items()
        }

    def learn(
        self, loss: Callable[[Weights, Batch], Tensor], batches: Iterable[Batch], rate: float
    ) -> Iterator[Float[Tensor, ""]]:
        """Take a step of Adam for each batch, and give its loss from before."""
        optimizer = torch.optim.Adam(self.radii.values(), lr=rate)
        for batch in batches:
            found = loss(self.weights(), batch)
            found.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield found.detach()
