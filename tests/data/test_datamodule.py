from pathlib import Path

import lightning
import pytest
import torch

from robustft.common.errors import UserError
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import Batch, EvaluationSet, Preprocess, TensorImages


class ToyData(RobustnessData):
    """60 training images and two evaluation sets in memory."""

    name = "toy"
    class_names = ["a", "b", "c"]
    templates = ["a {}"]

    def training_set(self) -> TensorImages:
        return TensorImages(torch.zeros(60, 3, 2, 2, dtype=torch.uint8), torch.arange(60) % 3)

    def evaluation_sets(self) -> list[EvaluationSet]:
        correct = torch.eye(3, dtype=torch.bool)
        keys = [str(i) for i in range(60)]
        return [EvaluationSet(name, self.training_set(), correct, keys) for name in ("toy", "toy_v2")]


def make(**options) -> ToyData:
    options = {"seed": 0, "batch_size": 8, "eval_batch_size": 7, "holdout": 12} | options
    return ToyData(preprocess=Preprocess(2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), **options)


class Recorder(lightning.LightningModule):
    """Notes the images of every training and validation batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(12, 3)
        self.trained: list[tuple[int, list[int]]] = []
        self.validated: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.trained.append((self.trainer.current_epoch, batch.indices.tolist()))
        return self.layer(batch.images.flatten(1).float()).sum()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated.append((dataloader_idx, batch.indices.tolist()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class SaveAt(lightning.Callback):
    """Writes a checkpoint when so many optimiser steps are done."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def trainer(tmp_path, **options) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **options,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_resumes_at_the_next_micro_batch(tmp_path, num_workers: int) -> None:
    """12 micro-batches an epoch; a checkpoint in the middle of the second epoch, restored by Lightning."""
    checkpoint = tmp_path / "last.ckpt"
    options = {"max_epochs": 3, "accumulate_grad_batches": 2}
    whole = Recorder()
    trainer(tmp_path, callbacks=[SaveAt(9, checkpoint)], **options).fit(whole, datamodule=make())

    resumed, data = Recorder(), make(num_workers=num_workers)
    data.resume_at(6)
    trainer(tmp_path, **options).fit(resumed, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    assert len(whole.trained) == 36
    assert resumed.trained == whole.trained[18:]
    assert [i for _, i in whole.trained[:12]] != [i for _, i in whole.trained[12:24]]


@pytest.mark.parametrize(("validate", "loaders"), [("holdout", [0]), ("all", [0, 1, 2])])
def test_while_fitting_the_hold_out_is_evaluated_or_all(tmp_path, validate: str, loaders: list[int]) -> None:
    module, data = Recorder(), make(validate=validate)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    assert sorted({loader for loader, _ in module.validated}) == loaders
    module.validated.clear()
    trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    for loader, images in ((0, 12), (1, 60), (2, 60)):
        assert sorted(i for k, batch in module.validated for i in batch if k == loader) == list(range(images))


def test_training_without_a_hold_out_validates_nothing(tmp_path) -> None:
    module, data = Recorder(), make(holdout=0)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    assert [s.name for s in data.sets] == ["toy", "toy_v2"]
    assert not module.validated and data.train_images == 60


def test_a_batch_that_does_not_split_is_the_users_mistake(tmp_path) -> None:
    with pytest.raises(UserError, match=r"data.batch_size=8 .* trainer.accumulate_grad_batches=3"):
        trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3).fit(Recorder(), datamodule=make())


@pytest.mark.parametrize(("size", "images"), [(None, 1), (12, 12)])
def test_the_hold_outs_size(size: int | None, images: int) -> None:
    data = make(holdout=size)
    data.setup()
    assert len(data.sets[0].dataset) == images and data.train_images == 60 - images


def test_images_in_memory_need_no_preparation() -> None:
    with pytest.raises(UserError, match="nothing to prepare"):
        make().prepare()
