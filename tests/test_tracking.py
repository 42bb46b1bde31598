"""What a run logs to its metrics.csv; test_dashboard.py reads what it tells W&B."""

import csv
import json
import os
from pathlib import Path

import pytest

from robustft.evaluation import disagreement
from robustft.training.checkpoints import KeepBest, KeepState
from robustft.training.lightning_private import read_rows, write_whole
from robustft.training.tracking import StepCSVLogger
from tests.small import do, work  # noqa: F401 (a fixture)

EVERY_RUN = {"train/loss", "train/ce", "train/images_per_s", "holdout/top1", "epoch", "step"}
DISTILLED = {"train/distance", "train/disagreement_x", "train/disagreement_x_cf"}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (("method=finetune",), EVERY_RUN),
        (("mask=none",), EVERY_RUN | DISTILLED),
        (("mask=object", "fill=multi"), EVERY_RUN | DISTILLED | {"train/masked"}),
        (("method=kd", "mask=random", "fill=single"), EVERY_RUN | DISTILLED | {"train/masked"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_csv_has_what_is_promised(work: Path, settings, names):  # noqa: F811
    folder = work / " ".join(settings).replace("=", "-")
    record = do(folder, *settings, "logger=csv", "trainer.log_every_n_steps=2")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert {name for row in rows for name in row if not name.startswith("final/")} == names
    steps = [int(row["step"]) for row in rows if "train/loss" in row]
    assert steps == [2, 4, 6]  # the measured steps are those that are logged
    last = [row for row in rows if "train/loss" in row][-1]
    if "train/distance" in names:
        assert float(last["train/disagreement_x"]) > 0 and float(last["train/disagreement_x_cf"]) > 0
    if settings[0] == "mask=object":
        assert last["train/disagreement_x_cf"] == last["train/distance"]
    (final,) = [row for row in rows if "final/id/top1" in row]
    assert float(final["final/ood/avg"]) == pytest.approx(record["ood_avg"])
    assert float(final["final/id/top1"]) == pytest.approx(record["id"]["top1"])
    assert float(final["final/holdout/top1"]) == pytest.approx(record["holdout"]["top1"])
    for name, score in record["ood"].items():
        assert float(final[f"final/ood/{name}"]) == pytest.approx(score["top1"])


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path):
    """Rows are written behind each other: of the last one a killed process may have written a part."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"epoch,step,train/loss\r\n0,1,3.5\r\n0,12,2.25\r\n1,1")
    assert read_rows(path) == [
        {"epoch": "0", "step": "1", "train/loss": "3.5"},
        {"epoch": "0", "step": "12", "train/loss": "2.25"},
    ]
    path.write_bytes(b"epoch,step\r\n0,1\r\n0\r\n1,2,3\r\n0,2\r\n")
    assert [row["step"] for row in read_rows(path)] == ["1", "2"]


def test_new_columns_never_empty_the_file(tmp_path: Path, monkeypatch):
    """Where the names of what is logged change, the rows so far are written anew."""
    logger = StepCSVLogger(save_dir=tmp_path, name="", version="")
    write_whole(logger, [])
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.save()

    def killed(*_: object) -> None:
        raise SystemError("killed")

    logger.log_metrics({"holdout/top1": 0.5}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemError):
            logger.save()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss", "1,1.0"]
    again = StepCSVLogger(save_dir=tmp_path, name="", version="")
    write_whole(again, ["step", "train/loss"])
    again.log_metrics({"holdout/top1": 0.5}, 1)
    again.save()
    assert [row["holdout/top1"] for row in read_rows(tmp_path / "metrics.csv")] == ["", "0.5"]


def test_a_short_run_logs_too(work: Path):  # noqa: F811
    """With fewer steps than log_every_n_steps the last one is logged."""
    do(work / "short", "logger=csv", "trainer.max_steps=2", "trainer.log_every_n_steps=50")
    with (work / "short" / "metrics.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert row["step"] == "2" and json.loads((work / "short" / "results.json").read_text())["holdout"]


@pytest.mark.parametrize(
    "settings",
    [
        ("mask=none",),
        ("method=finetune", "trainer.max_steps=5"),  # ends within an epoch
        ("mask=none", "trainer.val_check_interval=2", "disagreement=2"),
        ("method=finetune", "trainer.accumulate_grad_batches=2"),
        ("method=linear_probe",),
        ("method=lpft", "method.probe.epochs=1"),
    ],
    ids=" ".join,
)
def test_every_row_counts_finished_steps(work: Path, monkeypatch, settings):  # noqa: F811
    trained, evaluated = [], []
    step, evaluation = KeepState.on_train_batch_end, KeepBest.on_validation_end

    def after_step(self, trainer, *rest):
        if trainer.loggers and trainer.global_step not in trained:
            trained.append(trainer.global_step)
        step(self, trainer, *rest)

    def after_evaluation(self, trainer, module):
        if trainer.loggers:
            evaluated.append(trainer.global_step)
        evaluation(self, trainer, module)

    monkeypatch.setattr(KeepState, "on_train_batch_end", after_step)
    monkeypatch.setattr(KeepBest, "on_validation_end", after_evaluation)
    folder = work / "counted" / "".join(filter(str.isalnum, "".join(settings)))
    do(folder, *settings, "logger=csv")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def steps(name: str) -> list[int]:
        return [int(row["step"]) for row in rows if row.get(name)]

    total = 5 if "trainer.max_steps=5" in settings else 6
    assert trained[-total:] == steps("train/loss") == list(range(1, total + 1))
    assert steps("holdout/top1") == evaluated and evaluated[-1] == total
    assert steps("final/id/top1") == [total]
    if "disagreement=2" in settings:
        assert steps("disagreement/factual") == list(disagreement.read(folder / disagreement.FILE)) == [0, 3, 6]


def test_an_evaluation_alone_is_at_step_0(work: Path):  # noqa: F811
    do(work / "zero", "method=zeroshot", "logger=csv")
    with (work / "zero" / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0"]
