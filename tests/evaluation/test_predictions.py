"""The score of every set can be recomputed from predictions.csv.gz alone."""

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from robustft.evaluation.evaluate import Evaluation
from robustft.evaluation.evaluator import Evaluator
from robustft.evaluation.predictions import FILE, write_predictions
from robustft.models.classifier import Classifier
from tests.data.conftest import CLASSES, make_data, root  # noqa: F401 (a fixture)
from tests.small import do, work  # noqa: F401 (a fixture)


class Guesser(Classifier):
    """Logits that depend on the pixels, so that some predictions are right and some are not."""

    def __init__(self, classes: int) -> None:
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(3, classes)
        self.head.weight.data = torch.randn(classes, 3, generator=generator)
        self.head.bias.data = torch.randn(classes, generator=generator)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        places = torch.linspace(0, 1, self.head.out_features)
        near = -50 * (images.mean((1, 2, 3))[:, None] * 255 / 220 - places).square()
        return near + self.head(images.mean((2, 3)))


def recomputed(path: Path) -> dict[str, tuple[float, int]]:
    """Accuracy and number of images by set: a CSV reader and gzip, nothing of this package."""
    hits: dict[str, list[bool]] = {}
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            hit = row["predicted_class"] in row["right_classes"].split()
            assert hit == (row["correct"] == "1")
            hits.setdefault(row["set"], []).append(hit)
    return {name: (sum(of_set) / len(of_set), len(of_set)) for name, of_set in hits.items()}


NAMES = [
    "crane",
    "missile",
    "missile",
    'a "quoted", name',
    "eins / zwei",
    "zwei",
    *(f"thing {k}" for k in range(6, 12)),
]


@pytest.mark.parametrize("eval_images", [None, 3])
def test_scores_of_plain_sets_subsets_and_label_sets(root: Path, tmp_path: Path, eval_images):  # noqa: F811
    data = make_data(root, classes=replace(CLASSES, names=NAMES), holdout=12, eval_images=eval_images)
    data.setup("validate")
    evaluator = Evaluator(Guesser(12), data.sets, keep_predictions=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(evaluator, [data.eval_loader(s) for s in data.sets], verbose=False)
    evaluation = Evaluation(data.sets)
    evaluation.take(evaluator)
    write_predictions(tmp_path / FILE, evaluation, NAMES)
    assert recomputed(tmp_path / FILE) == {name: (s.top1, s.n) for name, s in evaluator.scores.items()}
    assert len({score.top1 for score in evaluator.scores.values()} - {0.0, 1.0}) > 1  # right and wrong ones
    with gzip.open(tmp_path / FILE, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:  # one numbering in every set, and names that fit it
        assert row["prediction"] == NAMES[int(row["predicted_class"])]
        assert row["label"] == " / ".join(NAMES[int(k)] for k in row["right_classes"].split())
    for name, wnids in (("imagenet_r", CLASSES.imagenet_r), ("imagenet_a", CLASSES.imagenet_a)):
        for row in rows:
            if row["set"] == name:
                assert row["right_classes"] == str(CLASSES.wnids.index(row["image"].split("/")[0]))
                assert CLASSES.wnids[int(row["predicted_class"])] in wnids
    cups = [row for row in rows if row["set"] == "objectnet" and row["image"].startswith("cup/")]
    assert all(row["right_classes"] == "2 3" and row["label"] == 'missile / a "quoted", name' for row in cups)


def test_a_run_s_scores_are_those_of_its_file(work: Path):  # noqa: F811
    record = do(work / "one", "method=evaluate", f"checkpoint={trained(work)}")
    scores = {record["id"]["name"]: record["id"], **record["ood"], "holdout": record["holdout"]}
    assert recomputed(work / "one" / FILE) == {name: (s["top1"], s["n"]) for name, s in scores.items()}


def trained(folder: Path) -> Path:
    do(folder / "trained", "method=finetune", "trainer.max_steps=1", "trainer.enable_checkpointing=true")
    return folder / "trained" / "model.safetensors"
