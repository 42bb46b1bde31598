"""What every family of data has in common: the hold-out, the loaders, their order."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int64
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from robustft.common.errors import UserError
from robustft.common.wording import counted
from robustft.data.augment import Augment, AugmentedImages
from robustft.data.contract import check_data
from robustft.data.loading import make_loader
from robustft.data.sampling import EvalSampler, TrainSampler, shuffled, split_holdout
from robustft.data.sets import EvaluationSet, ImageSet, Preprocess, RetentionTask, Selection

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
    def of(cls, trainer: Any) -> "Devices":
        """Those of a trainer."""
        cuda = trainer.strategy.root_device.type == "cuda"
        return cls(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, cuda)


class RobustnessData(LightningDataModule, ABC):
    """Hold the data of a run: training images, a hold-out taken from them, the in-distribution (ID) set, the shifts.

    A class of one's own is one file and one config. It sets `name`, `class_names` and `templates`, and gives
    `training_set` and `evaluation_sets`; everything else is there. `setup` checks what it gives (`contract.py`).

    >>> import torch
    >>> from robustft.data.datamodule import RobustnessData
    >>> from robustft.data.sets import EvaluationSet, Preprocess, TensorImages
    >>> class Grey(RobustnessData):
    ...     # Dark and light images; in the shift all are darker.
    ...     name, class_names, templates = "grey", ["dark", "light"], ["a {} picture."]
    ...     def __init__(self, *, images: int = 40, **options):
    ...         super().__init__(**options)
    ...         self.labels = torch.arange(images) % 2
    ...     def shades(self, dark: int) -> TensorImages:
    ...         side = self.preprocess.size
    ...         levels = (dark + 100 * self.labels).byte().view(-1, 1, 1, 1)
    ...         return TensorImages(levels.expand(-1, 3, side, side), self.labels)
    ...     def training_set(self):
    ...         return self.shades(100)
    ...     def evaluation_sets(self):
    ...         correct = torch.eye(2, dtype=torch.bool)
    ...         keys = [str(i) for i in range(len(self.labels))]
    ...         return [EvaluationSet(n, self.shades(dark), correct, keys) for n, dark in (("id", 100), ("dim", 20))]
    >>> half = (0.5, 0.5, 0.5)
    >>> data = Grey(preprocess=Preprocess(32, half, half), seed=0, batch_size=8, eval_batch_size=8, holdout=4)
    >>> data.setup()
    >>> [(s.name, len(s.dataset)) for s in data.sets], data.train_images
    ([('holdout', 4), ('id', 40), ('dim', 40)], 36)

    With this class in `mine.py` and, beside it, `configs/data/grey.yaml`:

        _target_: mine.Grey
        images: 40                      # every further key is an argument
        batch_size: 8
        eval_batch_size: 8
        holdout: 4

    `python run.py --config-dir configs data=grey` runs it. Without more the command line takes what the class takes;
    a `takes:` block (see conf/data/*.yaml) says which settings mean what, so that mistakes are told at once.

    After `setup`, `sets` holds the evaluation sets in the order of `val_dataloader()`: the hold-out (unless
    `holdout=0`), the ID set, the shifts, each under the name it was given.

    Args:
        preprocess: the model's transform.
        seed: of the training order; of the hold-out too, unless `holdout_seed` is given.
        batch_size: images per optimiser step, over all devices and accumulated micro-batches.
        eval_batch_size: images per device and evaluation batch.
        holdout: training images held out for model selection; None: 10,240, or 1% if that is fewer.
        eval_images: at most so many images per evaluation set (a fixed random draw); None: all.
        num_workers: loader processes per device; None: `default_workers()`.
        validate: "holdout" or "all": the sets evaluated while training.

    Raises:
        UserError: a number out of range; in `setup`: what the class gives is not what it should be.
    """

    name: str
    class_names: Sequence[str]
    templates: Sequence[Callable[[str], str] | str]
    official_images: Mapping[str, int] = {}  # of published sets, for check=data

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
        # A device may get none of a small evaluation set's images: none is repeated to fill up.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.preprocess, self.seed, self.validate = preprocess, seed, validate
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.holdout, self.eval_images, self.num_workers = holdout, eval_images, num_workers
        self.holdout_seed = seed if holdout_seed is None else holdout_seed
        self.sets: list[EvaluationSet] = []
        self._devices: Devices | None = None
        self.augment: Augment | None = None
        self._resume_at = 0
        self._check_arguments()

    # What a family of data gives

    @abstractmethod
    def training_set(self) -> ImageSet:
        """The whole training set, hold-out included. Called often: keep it."""

    @abstractmethod
    def evaluation_sets(self) -> list[EvaluationSet]:
        """The ID set, then the shift sets in the order of the reports. Called often: keep them."""

    def retention_tasks(self) -> list[RetentionTask]:
        """Other tasks that come with this data, on which every run is asked what it still knows; none, unless a
        subclass has some. A user leaves one out by `retain.<name>=false`.
        """
        return []

    def objects(self) -> Bool[Tensor, "images height width"] | None:
        """Where the object of each training image is seen, at any resolution; None: nobody knows. A data class that
        knows says ``takes: {objects: true}`` in its config.
        """
        return None

    def verify(self, training: bool = True) -> None:
        """Check cheaply, before any training, that everything needed is there; subclasses look closer.

        Args:
            training: False for an evaluation alone; training images then serve the hold-out only.

        Raises:
            UserError: what is missing or wrong, and what to do.
        """
        if not self.evaluation_sets():
            raise UserError(f"{type(self).__name__}.evaluation_sets() gives none: the first is the ID set")
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

    def training_order(self, positions: Int64[Tensor, " images"], random: torch.Generator) -> Int64[Tensor, " images"]:
        """The order of an epoch: a random one of the images trained on; subclasses may draw others."""
        return shuffled(positions, random)

    def settle(self, recipe: Mapping[str, int]) -> dict[str, int]:
        """What suits these images better than the model's recipe, of what is not typed; nothing, unless a subclass
        has a rule. Said in the log.

        Args:
            recipe: what follows the recipe so far, of "batch_size" and "max_epochs".

        Returns:
            values to take instead.
        """
        return {}

    def protocol(self) -> dict[str, Any]:
        """What results have to say of the data, of "templates", "class_names", "candidates" and "split"; nothing, by
        default.
        """
        return {}

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
    def augments(self) -> bool:
        """Whether a training image is another one every time: nothing that is known of it can be kept."""
        return self.augment is not None

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
        return len(self.split[0])

    def setup(self, stage: str | None = None) -> None:
        """Collect the evaluation sets; once, whatever the stages."""
        if self.sets:
            return
        check_data(self)
        sets = self.evaluation_sets()
        if self.holdout != 0:
            sets = [self._holdout_set(), *sets]
        self.sets = [evaluation_set.at_most(self.eval_images) for evaluation_set in sets]

    def train_dataloader(self) -> DataLoader:
        """Micro-batches of this device; see `TrainSampler`."""
        self.check_batch_size()
        images: Any = self.training_set()
        if self.augment is not None:
            images = AugmentedImages(images, self.augment, self.preprocess.size, self.seed)
        sampler = TrainSampler(
            self.split[0],
            self.batch_size,
            seed=self.seed,
            rank=self.devices.rank,
            world_size=self.devices.count,
            accumulate=self.devices.accumulate,
            start_epoch=self.trainer.current_epoch if self.trainer else 0,
            start_batch=self._resume_at,
            order=self.training_order,
            epoch_step=len(images) if self.augments else 0,
        )
        self._resume_at = 0
        return make_loader(
            images,
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
        images = len(evaluation_set.dataset)
        sampler = EvalSampler(images, self.eval_batch_size, self.devices.rank, self.devices.count)
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
    def split(self) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " holdout"]]:
        """Positions in the training set: those trained on, and those held out."""
        labels = self.training_set().labels
        size = self.holdout
        if size is None:
            size = max(1, min(DEFAULT_HOLDOUT, len(labels) // 100))
        if size >= len(labels):
            raise UserError(
                f"data.holdout={size} leaves nothing to train on: the training set has {counted(len(labels), 'image')}."
            )
        return split_holdout(labels, size, self.holdout_seed)

    def _holdout_set(self) -> EvaluationSet:
        """A plain set over all classes: the training set has them all."""
        images, held = self.training_set(), self.split[1]
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
                f"data.batch_size={self.batch_size} does not split over {counted(world_size, 'device')} ×"
                f" trainer.accumulate_grad_batches={accumulate}. Give a multiple of {world_size * accumulate}."
            )
        if self.batch_size < least * world_size * accumulate:
            raise UserError(
                f"data.batch_size={self.batch_size}: each of {counted(world_size, 'device')} would see one image at a"
                f" time (trainer.accumulate_grad_batches={accumulate}), and a fill takes patches from others. Raise it."
            )
        if self.train_images < self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {counted(self.train_images, 'training image')}"
                " left after the hold-out: there would be no step. Give a smaller data.batch_size."
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
