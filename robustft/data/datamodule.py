"""What every family of data has in common: the hold-out, the loaders, their order."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from robustft.common.errors import UserError
from robustft.data.loading import make_loader
from robustft.data.sampling import EvalSampler, TrainSampler, split_holdout
from robustft.data.sets import EvaluationSet, ImageSet, Preprocess, Selection

DEFAULT_HOLDOUT = 10_240


@dataclass(frozen=True)
class Devices:
    """How the work of a run is shared out.

    Attributes:
        rank: of this process among ``count``, one for each device.
        accumulate: micro-batches of an optimiser step.
        cuda: batches travel to a GPU.
    """

    rank: int = 0
    count: int = 1
    accumulate: int = 1
    cuda: bool = False

    @classmethod
    def of(cls, trainer: Trainer) -> "Devices":
        """Those of a trainer."""
        cuda = trainer.strategy.root_device.type == "cuda"
        return cls(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, cuda)


class RobustnessData(LightningDataModule, ABC):
    """Training images, a hold-out taken from them, the in-distribution (ID) set and the shift sets.

    Subclasses set `name`, `class_names` and `templates`, and give `training_set` and `evaluation_sets`.
    After `setup`, `sets` holds the evaluation sets in the order of `val_dataloader()`: the hold-out (unless
    `holdout=0`), the ID set, the shifts.

    Args:
        preprocess: the model's transform.
        seed: of the training order; of the hold-out too, unless `holdout_seed` is given.
        batch_size: images per optimiser step, over all devices and accumulated micro-batches.
        eval_batch_size: images per device and evaluation batch.
        holdout: training images held out for model selection; None: 10,240, or 1% if that is fewer.
        eval_images: at most so many images per evaluation set (a fixed random draw); None: all.
        num_workers: loader processes per device; None: `default_workers()`.
        validate: "holdout" or "all": the sets evaluated while training.
    """

    # A device may get none of a small evaluation set's images: none is repeated to fill up.
    allow_zero_length_dataloader_with_multiple_devices = True

    name: str
    class_names: Sequence[str]
    templates: Sequence[Callable[[str], str] | str]

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        holdout: int | None = None,
        holdout_seed: int | None = None,
        eval_images: int | None = None,
        num_workers: int | None = None,
        validate: str = "holdout",
    ) -> None:
        super().__init__()
        self.preprocess, self.seed, self.validate = preprocess, seed, validate
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.holdout, self.eval_images, self.num_workers = holdout, eval_images, num_workers
        self.holdout_seed = seed if holdout_seed is None else holdout_seed
        self.sets: list[EvaluationSet] = []
        self._devices: Devices | None = None
        self._resume_at = 0
        self._check_arguments()

    # What a family of data gives

    @abstractmethod
    def training_set(self) -> ImageSet:
        """The whole training set, hold-out included. Called often: keep it."""

    @abstractmethod
    def evaluation_sets(self) -> list[EvaluationSet]:
        """The ID set, then the shift sets in the order of the reports. Called often: keep them."""

    def verify(self, training: bool = True) -> None:
        """Check cheaply, before any training, that everything needed is there; subclasses look closer.

        Args:
            training: False for an evaluation alone; training images then serve the hold-out only.

        Raises:
            UserError: what is missing or wrong, and what to do.
        """
        self.setup()
        if training:
            self.check_batch_size()

    def prepare(self, training: bool = True) -> None:
        """Make prepared copies of image files; subclasses that have files do.

        Args:
            training: False for an evaluation alone, see `verify`.

        Raises:
            UserError: there is nothing to prepare.
        """
        raise UserError(f"prepare=true: data={self.name} makes its images in memory, there is nothing to prepare.")

    def parts(self) -> dict[str, Callable[[], ImageSet]]:
        """What to look at, one by one, when the data is checked."""
        return {"train": self.training_set} | {
            s.name: (lambda dataset=s.dataset: dataset) for s in self.evaluation_sets()
        }

    def default_workers(self) -> int:
        """Loader processes when `num_workers` is not given: none, right for images in memory."""
        return 0

    # What all have in common

    @property
    def devices(self) -> Devices:
        """Those of the run, once it has said so; else those of a trainer that was given this data, or one."""
        if self._devices is None and self.trainer is not None:
            return Devices.of(self.trainer)
        return self._devices or Devices()

    @devices.setter
    def devices(self, devices: Devices) -> None:
        self._devices = devices

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def partial(self) -> bool:
        """Whether an evaluation leaves images out (`eval_images`)."""
        return any(evaluation_set.partial for evaluation_set in self.sets)

    @property
    def train_images(self) -> int:
        """Training images without the hold-out."""
        return len(self._split[0])

    @property
    def training_positions(self) -> Int64[Tensor, " train"]:
        """Where in the training set the images are that are trained on."""
        return self._split[0]

    def setup(self, stage: str | None = None) -> None:
        """Collect the evaluation sets; once, whatever the stages."""
        if self.sets:
            return
        sets = self.evaluation_sets()
        if self.holdout != 0:
            sets = [self._holdout_set(), *sets]
        self.sets = [evaluation_set.at_most(self.eval_images) for evaluation_set in sets]

    def train_dataloader(self) -> DataLoader:
        """Micro-batches of this device; see `TrainSampler`."""
        self.check_batch_size()
        sampler = TrainSampler(
            self._split[0],
            self.batch_size,
            seed=self.seed,
            rank=self.devices.rank,
            world_size=self.devices.count,
            accumulate=self.devices.accumulate,
            start_epoch=self.trainer.current_epoch if self.trainer else 0,
            start_batch=self._resume_at,
        )
        self._resume_at = 0
        return make_loader(
            self.training_set(),
            sampler,
            sampler.micro_batch,
            num_workers=self._workers(),
            persistent=True,
            pin_memory=self.devices.cuda,
        )

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per set of `sets`; while fitting, with validate="holdout", the hold-out's alone."""
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self.validate == "holdout":
            return [self.eval_loader(s, persistent=True) for s in self.sets if s.name == "holdout"]
        return [self.eval_loader(s) for s in self.sets]

    def resume_at(self, batch: int) -> None:
        """Start the epoch that `train_dataloader()` begins with at this micro-batch."""
        self._resume_at = batch

    def eval_loader(self, evaluation_set: EvaluationSet, persistent: bool = False) -> DataLoader:
        """This device's share of an evaluation set, each image once over all devices."""
        sampler = EvalSampler(len(evaluation_set.dataset), self.devices.rank, self.devices.count)
        return make_loader(
            evaluation_set.dataset,
            sampler,
            self.eval_batch_size,
            num_workers=self._workers(),
            persistent=persistent,
            pin_memory=self.devices.cuda,
        )

    def _workers(self) -> int:
        return self.default_workers() if self.num_workers is None else self.num_workers

    @cached_property
    def _split(self) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " holdout"]]:
        """Positions in the training set: those trained on, and those held out."""
        labels = self.training_set().labels
        size = self.holdout
        if size is None:
            size = max(1, min(DEFAULT_HOLDOUT, len(labels) // 100))
        if size >= len(labels):
            raise UserError(
                f"data.holdout={size} leaves nothing to train on: the training set has {len(labels)} images."
            )
        return split_holdout(labels, size, self.holdout_seed)

    def _holdout_set(self) -> EvaluationSet:
        """A plain set over all classes: the training set has them all."""
        images, held = self.training_set(), self._split[1]
        return EvaluationSet(
            "holdout",
            Selection(images, held),
            correct=torch.eye(self.num_classes, dtype=torch.bool),
            keys=[images.key(i) for i in held.tolist()],
        )

    def check_batch_size(self, least: int = 1) -> None:
        """Refuse a batch that does not split evenly, or into fewer than ``least`` images a device at a time.

        Raises:
            UserError: says which numbers would do.
        """
        world_size, accumulate = self.devices.count, self.devices.accumulate
        if self.batch_size % (world_size * accumulate):
            raise UserError(
                f"data.batch_size={self.batch_size} does not split over {world_size} device(s) × "
                f"trainer.accumulate_grad_batches={accumulate}. Give a multiple of {world_size * accumulate}."
            )
        if self.batch_size < least * world_size * accumulate:
            raise UserError(
                f"data.batch_size={self.batch_size}: each of {world_size} device(s) would see one image at a time "
                f"(trainer.accumulate_grad_batches={accumulate}), and a fill takes patches from others. Raise it."
            )
        if self.train_images < self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {self.train_images} training images "
                "left after the hold-out: there would be no step. Give a smaller data.batch_size."
            )

    def _check_arguments(self) -> None:
        least_values = {
            "batch_size": 1,
            "eval_batch_size": 1,
            "holdout": 0,
            "eval_images": 1,
            "num_workers": 0,
        }
        for option, least in least_values.items():
            value: Any = getattr(self, option)
            if value is not None and (not isinstance(value, int) or value < least):
                raise UserError(f"data.{option}={value}: give a whole number, {least} or more.")
        if self.validate not in ("holdout", "all"):
            raise UserError(f"data.validate={self.validate}: give holdout or all.")
