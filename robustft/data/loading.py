"""The DataLoader as robustft uses it: batches are `Batch`, and a user's mistake survives worker processes."""

import logging
import os
import signal
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from robustft.common.errors import UserError
from robustft.common.signals import start_loader_worker
from robustft.data.sets import Batch, ImageSet, take

log = logging.getLogger(__name__)

SHARED_MEMORY = "/dev/shm"


class Loader(DataLoader):
    """A DataLoader that raises what `Fetch` caught, and takes its batches as they come, see `handed_over`.

    Being a generator, `__iter__` starts the workers at the first batch: Lightning makes the iterator before
    it calls the sampler's `set_epoch`, and workers started then would fetch another epoch's images.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            batches = super().__iter__()
        except OSError as error:  # no semaphores, which live in /dev/shm
            raise UserError(
                f"loader processes cannot be started here ({error}): data.num_workers=0 loads without them."
            ) from error
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if (how := _how_a_worker_ended(batches)) is None:
                    raise
                raise RuntimeError(f"DataLoader worker (pid unknown) is killed by signal: {how}") from error
            if isinstance(batch, UserError):
                # A new one: raising `batch` itself would tie this frame, the loader and its workers into a
                # cycle, and workers ended by the garbage collector take 5 s each.
                raise UserError(str(batch))
            yield self._taken(batch)

    def _taken(self, batch: Batch) -> Batch:
        if isinstance(batch.images, Tensor):
            return batch
        _say_that_room_is_short()
        arrays: Any = batch
        taken = Batch(*(torch.from_numpy(part) for part in arrays))
        return Batch(*(part.pin_memory() for part in taken)) if self.pin_memory else taken


def _how_a_worker_ended(batches: Any) -> str | None:
    """The signal that ended a loader process, as torch calls it; None: none was ended by one.

    torch learns it from SIGCHLD, whose handler another library may have taken.
    """
    codes = [process.exitcode for process in getattr(batches, "_workers", ())]
    number = next((-code for code in codes if code is not None and code < 0), None)
    return None if number is None else signal.strsignal(number)


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
            batch = take(self.dataset, indices)
        except UserError as error:
            return error
        return batch if get_worker_info() is None else handed_over(batch)


def handed_over(batch: Batch) -> Any:
    """A batch on its way out of a worker process: in shared memory where there is room, else through a pipe.

    Containers often have 64 MB of shared memory. Left to itself, torch runs out of it in a thread whose errors nobody
    sees: the batch is lost, and the run waits for it for ever.

    Returns:
        The batch, its tensors in shared memory; or with NumPy arrays for tensors.
    """
    if not os.path.isdir(SHARED_MEMORY):
        return batch  # torch has other ways there
    room = os.statvfs(SHARED_MEMORY)
    size = sum(part.nbytes for part in batch)
    # Half of it is for others: the loaders of other runs, NCCL between GPUs.
    if room.f_bavail * room.f_frsize - size >= room.f_blocks * room.f_frsize / 2:
        try:
            return Batch(*(part.share_memory_() for part in batch))
        except RuntimeError:  # another process was faster, or too many files are open
            pass
    by_pipe: Any = [np.array(part) for part in batch]
    return Batch(*by_pipe)


@cache
def _say_that_room_is_short() -> None:
    """Once per process."""
    log.info(
        "little room in %s: batches come from the loader processes through pipes, which is slower. In Docker:"
        " docker run --shm-size=8g; or load without such processes: data.num_workers=0",
        SHARED_MEMORY,
    )


def make_loader(
    dataset: ImageSet,
    sampler: Sampler[int],
    batch_size: int,
    *,
    num_workers: int,
    persistent: bool = False,
    pin_memory: bool = False,
) -> Loader:
    """A loader of `Batch`es in the sampler's order; memory is pinned for batches that go to a CUDA device."""
    return Loader(
        Fetch(dataset),
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=_unchanged,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=start_loader_worker,
    )


def _unchanged(batch: Any) -> Any:
    return batch


def usable_cpus() -> int:
    """CPUs this process may use, its share of them when several processes train on this machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
