"""What a run logs to its metrics.csv; test_dashboard.py reads what it tells W&B."""

import csv
import json
from pathlib import Path

import pytest

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
    assert steps == [1, 3, 5]  # the measured steps are those that are logged
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


def test_a_short_run_logs_too(work: Path):  # noqa: F811
    """With fewer steps than log_every_n_steps the last one is logged."""
    do(work / "short", "logger=csv", "trainer.max_steps=2", "trainer.log_every_n_steps=50")
    with (work / "short" / "metrics.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert row["step"] == "1" and json.loads((work / "short" / "results.json").read_text())["holdout"]
