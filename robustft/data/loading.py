"""The DataLoader as robustft uses it: batches are `Batch`, and a user's mistake survives worker processes."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from robustft.data.sets import Batch, ImageSet
from robustft.errors import UserError
from robustft.signals import start_loader_worker


class Loader(DataLoader):
    """A DataLoader that raises what `Fetch` caught.

    Being a generator, `__iter__` starts the workers at the first batch: Lightning makes the iterator before
    it calls the sampler's `set_epoch`, and workers started then would fetch another epoch's images.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                # A new one: raising `batch` itself would tie this frame, the loader and its workers into a
                # cycle, and workers ended by the garbage collector take 5 s each.
                raise UserError(str(batch))
            yield batch


class Fetch(Dataset):
    """A dataset asked for whole batches.

    torch re-raises a worker's exception with a traceback for its message, so a UserError (an unreadable
    image) is returned in place of the batch instead.
    """

    def __init__(self, dataset: ImageSet) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> Batch | UserError:
        try:
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(indices)
            images, labels, positions = zip(*(self.dataset[i] for i in indices), strict=True)
        except UserError as error:
            return error
        return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(positions))


def make_loader(
    dataset: ImageSet, sampler: Sampler[int], batch_size: int, *, num_workers: int, persistent: bool = False
) -> Loader:
    """A loader of `Batch`es in the sampler's order, with pinned memory where there is a GPU."""
    return Loader(
        Fetch(dataset),
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=_unchanged,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_loader_worker,
    )


def _unchanged(batch: Any) -> Any:
    return batch


def usable_cpus() -> int:
    """CPUs this process may use, its share of them when several processes train on this machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
