"""Everything of Lightning's that is private, in one place: tests/test_private_names.py says when it has moved.

What is asked for here has no public way as of Lightning 2.6: where in an epoch a trainer stands, whether an evaluation
comes next, and how its loops are written into a checkpoint.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop

from robustft.common.files import atomic


def is_attached(module: LightningModule) -> bool:
    """Whether a trainer has the module in hand; ``module.trainer`` raises where none has."""
    return module._trainer is not None


def leave_to_each_device(module: LightningModule, names: Iterable[str]) -> None:
    """Keep DDP from synchronising buffers of these names: devices that get unequal numbers of batches would wait."""
    vars(module)["_ddp_params_and_buffers_to_ignore"] = list(names)


def micro_batches_done(trainer: Trainer) -> int:
    """Micro-batches of the running epoch that have been taken."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


class _Evaluation(_EvaluationLoop):
    """An evaluation that a device without images takes part in: the others wait for its counts of none."""

    @property
    def skip(self) -> bool:
        return bool(super().skip) and (self.trainer.world_size == 1 or not self.max_batches)


def evaluate_on_every_device(trainer: Trainer) -> None:
    """Keep a device that has none of a small set's images from leaving an evaluation at once."""
    loops: list[Any] = [trainer.validate_loop, trainer.fit_loop.epoch_loop.val_loop]
    for loop in loops:
        loop.__class__ = _Evaluation


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


def connect(trainer: Trainer) -> None:
    """Start the other processes of a run, unless somebody has, and let all of them know each other."""
    strategy: Any = trainer.strategy
    if not torch.distributed.is_initialized():
        strategy.launcher.launch(strategy.setup_environment, trainer=trainer)


def without_anonymous(logger: WandbLogger) -> None:
    """Leave out an argument that W&B warns of, whatever its value."""
    logger._wandb_init.pop("anonymous", None)


class KeptRows(ExperimentWriter):
    """Writes ``metrics.csv`` without a moment in which what stood there is gone, as Lightning's own does twice."""

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        write_rows(Path(self.metrics_file_path), fieldnames, read_rows(Path(self.metrics_file_path)))


def write_whole(logger: CSVLogger, names: Sequence[str]) -> None:
    """Let ``logger`` write as `KeptRows` does, behind what is in its file, whose columns have these names."""
    logger._experiment = writer = KeptRows(logger.log_dir)
    writer.metrics_keys = list(names)


def keep_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Drop all other rows of a CSV file."""
    if rows:
        write_rows(path, list(rows[0]), rows)
    else:
        path.unlink(missing_ok=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, without a last one that was cut off."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
    return [row for row in rows if None not in row.values() and None not in row]


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV file atomically."""
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, names)
        lines.writeheader()
        lines.writerows(rows)
