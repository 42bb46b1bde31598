"""Everything of Lightning's that is private, in one place: tests/test_private_names.py says when it has moved.

What is asked for here has no public way as of Lightning 2.6: where in an epoch a trainer stands, whether an evaluation
comes next, and how its loops are written into a checkpoint.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger


def is_attached(module: LightningModule) -> bool:
    """Whether a trainer has the module in hand; ``module.trainer`` raises where none has."""
    return module._trainer is not None


def leave_to_each_device(module: LightningModule, names: Iterable[str]) -> None:
    """Keep DDP from synchronising buffers of these names: devices that get unequal numbers of batches would wait."""
    vars(module)["_ddp_params_and_buffers_to_ignore"] = list(names)


def micro_batches_done(trainer: Trainer) -> int:
    """Micro-batches of the running epoch that have been taken."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the loader has no more for this epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def validates_next(trainer: Trainer) -> bool:
    """Whether an evaluation follows the micro-batch that has just been done."""
    loop: Any = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def count_epochs_once(trainer: Trainer) -> None:
    """With max_steps Lightning would count an epoch twice that was over when the state was saved."""
    setattr(trainer.fit_loop, "_iteration_based_training", lambda: False)  # noqa: B010 -- it is a method


def describe_as_evaluated(checkpoint: dict[str, Any], epoch_is_over: bool) -> None:
    """Write the loops of a checkpoint as they will be after the evaluation that is due: Lightning skips it."""
    loops = checkpoint["loops"]["fit_loop"]
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    for count in ("total", "current"):
        batches[count]["completed"] = batches[count]["processed"]
        loops["epoch_loop.val_loop.batch_progress"][count] = dict.fromkeys(batches[count], 0)
    if epoch_is_over:
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
        for count in ("total", "current"):
            epochs[count]["processed"] += 1


def next_micro_batch(checkpoint: Mapping[str, Any]) -> int:
    """Where in its epoch a training goes on that left ``checkpoint``."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return 0 if progress["is_last_batch"] else progress["current"]["ready"]


def without_anonymous(logger: WandbLogger) -> None:
    """Leave out an argument that W&B warns of, whatever its value."""
    logger._wandb_init.pop("anonymous", None)
