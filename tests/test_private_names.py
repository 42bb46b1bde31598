"""The private names of others that are relied on are there and do what they are taken for: one test a name."""

import ast
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader

from robustft.training import lightning_private as private
from tests.small import ROOT

BATCHES = 3


class Counting(LightningModule):
    """Looks at its trainer after every micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, bool, bool]] = []
        self.order: list[str] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.order.append("step")
        return self.weight * batch.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.order.append("evaluation")

    def on_train_batch_end(self, *_: object) -> None:
        trainer = self.trainer
        counts = private.micro_batches_done(trainer), private.is_last_batch(trainer), private.validates_next(trainer)
        self.seen.append(counts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, checkpoint: Path | None = None, **limits: object) -> tuple[Trainer, Counting]:
    module, loader = Counting(), DataLoader(torch.ones(BATCHES), batch_size=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, **quiet, **limits)
    trainer.fit(module, loader, loader, ckpt_path=checkpoint)
    return trainer, module


def test_where_a_trainer_stands(tmp_path):
    _, module = fit(tmp_path, max_epochs=1, val_check_interval=2)
    assert module.seen == [(1, False, False), (2, False, True), (3, True, False)]
    assert module.order == ["step", "step", *["evaluation"] * BATCHES, "step"]


def test_attached(tmp_path):
    assert not private.is_attached(Counting())
    assert private.is_attached(fit(tmp_path, max_epochs=1)[1])


def test_the_loops_of_a_checkpoint(tmp_path):
    trainer, _ = fit(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "within")
    trainer, _ = fit(tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "over")
    within, over = (torch.load(tmp_path / name, weights_only=False) for name in ("within", "over"))
    assert (private.next_micro_batch(within), private.next_micro_batch(over)) == (2, 0)
    before = within["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
    private.describe_as_evaluated(within, epoch_is_over=True)
    assert within["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] == before + 1


def test_epochs_are_counted_once(tmp_path):
    """Of two epochs the first is over when the state is saved: with max_steps one more is to come, not none."""
    trainer, _ = fit(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "state")
    module, loader = Counting(), DataLoader(torch.ones(BATCHES), batch_size=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, max_steps=2 * BATCHES, limit_val_batches=0, **quiet)
    private.count_epochs_once(trainer)
    trainer.fit(module, loader, ckpt_path=tmp_path / "state")
    assert trainer.current_epoch == 2 and Counter(module.order) == {"step": BATCHES}


def test_buffers_that_devices_keep_to_themselves():
    module = Counting()
    private.leave_to_each_device(module, ["counts"])
    parallel = torch.nn.parallel.DistributedDataParallel
    assert module._ddp_params_and_buffers_to_ignore == ["counts"]
    assert "_ddp_params_and_buffers_to_ignore" in Path(parallel.__init__.__code__.co_filename).read_text()


def test_wandb_is_not_told_of_anonymity(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert "anonymous" in logger._wandb_init
    private.without_anonymous(logger)
    assert "anonymous" not in logger._wandb_init


OURS = {"robustft/training/lightning_private.py"}


@pytest.mark.parametrize("package", ["lightning"])
def test_nowhere_else(package):
    """No other file of ours asks an object of theirs for a private name."""
    names = {"_trainer", "_should_check_val_fx", "_data_fetcher", "_iteration_based_training", "_wandb_init"}
    names |= {"fit_loop", "epoch_loop", "batch_progress", "_ddp_params_and_buffers_to_ignore"}
    for path in (ROOT / "robustft").rglob("*.py"):
        if str(path.relative_to(ROOT)) not in OURS:
            used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not used & names, path
