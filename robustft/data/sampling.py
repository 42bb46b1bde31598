"""Which images come when: deterministic functions of seeds, the same whatever the number of devices."""

import math
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler

from robustft.common.randomness import generator


def draw(images: int, chosen: int, seed: int) -> Int64[Tensor, " chosen"]:
    """`chosen` of `images` positions at random, in ascending order."""
    return torch.randperm(images, generator=generator("images shown", seed))[:chosen].sort().values


def split_holdout(
    labels: Int64[Tensor, " images"], size: int, seed: int
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " holdout"]]:
    """Split positions into training and hold-out images, both in ascending order.

    Stratified where every class has two images or more: each class gives its share of `size`, the rest goes
    to the largest remainders, and at least one image of each class stays for training. A plain draw
    otherwise.
    """
    order = torch.randperm(len(labels), generator=generator("hold-out", seed))
    classes, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) and counts.min() >= 2 and size <= len(labels) - len(classes):
        take = shares(counts, size, seed)
        order = order[inverse[order].sort(stable=True).indices]  # by class, random within each
        first = counts.cumsum(0) - counts
        rank_in_class = torch.arange(len(labels)) - first[inverse[order]]
        held = order[rank_in_class < take[inverse[order]]]
    else:
        held = order[:size]
    is_held = torch.zeros(len(labels), dtype=torch.bool)
    is_held[held] = True
    return (~is_held).nonzero().flatten(), is_held.nonzero().flatten()


def shares(counts: Int64[Tensor, " classes"], size: int, seed: int) -> Int64[Tensor, " classes"]:
    """Hold-out images per class, summing to `size`, less than the class has."""
    exact = size * counts.double() / counts.sum()
    take = exact.floor().long().minimum(counts - 1)
    # Equal remainders (ImageNet: 10.24 images a class) are settled by lot.
    lot = torch.rand(len(counts), generator=generator("hold-out remainders", seed), dtype=torch.float64)
    by_remainder = ((exact - take).round(decimals=9) + lot * 1e-9).argsort(descending=True)
    while (missing := size - int(take.sum())) > 0:
        open_classes = by_remainder[(take < counts - 1)[by_remainder]]
        take[open_classes[:missing]] += 1
    return take


def shuffled(indices: Int64[Tensor, " images"], random: torch.Generator) -> Int64[Tensor, " images"]:
    """All images in a random order."""
    return indices[torch.randperm(len(indices), generator=random)]


def balanced(groups: Int64[Tensor, " images"], random: torch.Generator) -> Int64[Tensor, " images"]:
    """Positions in a random order in which groups take turns: of any so many images each group has its share.

    As many positions as there are images. An image of a small group comes several times, those of a large group not
    all: within a group every image comes once before any comes again.

    Args:
        groups: the group of each image, its class or its domain.
    """
    present = groups.unique()
    rounds = math.ceil(len(groups) / len(present))
    turns = torch.stack([torch.randperm(len(present), generator=random) for _ in range(rounds)])
    drawn = torch.empty(rounds, len(present), dtype=torch.int64)
    for column, group in enumerate(present.tolist()):
        members = (groups == group).nonzero().flatten()
        again = math.ceil(rounds / len(members))
        passes = [members[torch.randperm(len(members), generator=random)] for _ in range(again)]
        drawn[:, column] = torch.cat(passes)[:rounds]
    return drawn.gather(1, turns).flatten()[: len(groups)]


class TrainSampler(Sampler[int]):
    """The images of one device, micro-batch after micro-batch.

    The global order of an epoch depends on (seed, epoch) alone. Optimiser step s takes `batch_size`
    consecutive images of it, cut into micro-batches first and devices second, so neither the number of
    devices nor gradient accumulation changes which images make a step. The last partial step is dropped.

    Lightning calls `set_epoch`. `start_batch` skips micro-batches of `start_epoch` (a resumed run).

    Args:
        order: the global order of an epoch, from the images and a random generator of that epoch.
        epoch_step: added to the positions once per epoch: a data set of so many images then tells the epochs apart.
    """

    def __init__(
        self,
        indices: Int64[Tensor, " images"],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        start_epoch: int = 0,
        start_batch: int = 0,
        order: Callable[[Int64[Tensor, " images"], torch.Generator], Int64[Tensor, " images"]] = shuffled,
        epoch_step: int = 0,
    ) -> None:
        self.indices, self.seed, self.rank = indices, seed, rank
        self.order, self.epoch_step = order, epoch_step
        self.micro_batch, rest = divmod(batch_size, world_size * accumulate)
        if rest:
            raise ValueError(f"a batch of {batch_size} does not split over {world_size} × {accumulate}")
        self.shape = (len(indices) // batch_size, accumulate, world_size, self.micro_batch)
        self.epoch = self.start_epoch = start_epoch
        self.start_batch = start_batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Images of a full epoch on this device, also when the first one starts in the middle."""
        steps, accumulate, _, micro_batch = self.shape
        return steps * accumulate * micro_batch

    def __iter__(self) -> Iterator[int]:
        random = generator("order of images", self.seed, self.epoch)
        order = self.order(self.indices, random) + self.epoch * self.epoch_step
        steps = order[: math.prod(self.shape)].view(self.shape)
        mine = steps[:, :, self.rank].reshape(-1, self.micro_batch)
        skip = self.start_batch if self.epoch == self.start_epoch else 0
        yield from mine[skip:].flatten().tolist()


class EvalSampler(Sampler[int]):
    """Device `rank` of `world_size` takes batches rank, rank + world_size, ...: every image exactly once.

    Whole batches, since a network may give an image other last digits in a batch of another size: so every image
    meets the same ones on any number of devices. torch's DistributedSampler repeats images to make the devices even,
    which changes accuracies.
    """

    def __init__(self, images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        starts = range(rank * batch_size, images, world_size * batch_size)
        self.batches = [range(start, min(start + batch_size, images)) for start in starts]

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.batches)
