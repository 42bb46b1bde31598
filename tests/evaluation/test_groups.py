"""The worst group: told by a table, measured for both models, the same by hand."""

import csv
import json
from pathlib import Path

import pytest
import torch

from robustft.common.errors import UserError
from robustft.data.own.table import TableImages
from robustft.evaluation.metrics import WorstGroup
from robustft.evaluation.scoring import score
from robustft.models.files import MODEL
from tests.data.own import OPTIONS, write_domains
from tests.test_own_data import run


def table(folder: Path) -> Path:
    """Photos to train on and sketches as a shift; the group of an image is the parity of its number."""
    root = write_domains(folder, domains=("photo", "sketch"))
    rows = []
    for path in sorted(root.glob("*/*/*.png")):
        odd = "odd" if int(path.stem.partition("_")[2]) % 2 else "even"
        split = "train" if path.parts[-3] == "photo" else "sketch"
        rows.append((str(path.relative_to(root)), path.parent.name, split, odd))
    with (root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])
    return root / "t.csv"


def test_every_set_knows_the_groups_of_its_images(tmp_path: Path) -> None:
    data = TableImages(**OPTIONS, path=str(table(tmp_path)), eval_images=9)
    data.verify()
    for one in data.sets:
        assert one.groups is not None and len(one.groups) == len(one.dataset)
        expected = [int(Path(key).stem.partition("_")[2]) % 2 for key in one.keys]  # even is 0, odd is 1
        assert one.groups.tolist() == expected
    rows = (tmp_path / "t.csv").read_text().replace(",even", ",", 1)
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(UserError, match="1 row lacks a path, a label, a split or a group"):
        TableImages(**OPTIONS, path=str(tmp_path / "t.csv")).verify()


def test_the_worst_group_by_hand() -> None:
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3000, 4, generator=random), torch.randint(4, (3000,), generator=random)
    groups = torch.randint(1, 6, (3000,), generator=random)  # no image is of group 0
    correct = torch.eye(4, dtype=torch.bool)[labels]
    by_hand = {}
    for guess, label, group in zip(logits.argmax(1).tolist(), labels.tolist(), groups.tolist(), strict=True):
        by_hand.setdefault(group, []).append(guess == label)
    worst = min(sum(hits) / len(hits) for hits in by_hand.values())
    found = score(logits, correct, {"worst_group": WorstGroup()}, None, groups)
    assert found.more["worst_group"] == pytest.approx(worst, abs=1e-12)
    assert score(logits, correct, {"worst_group": WorstGroup()}, None).more["worst_group"] is None


@pytest.mark.slow
def test_a_run_measures_it_without_being_asked(tmp_path: Path) -> None:
    place = table(tmp_path)
    done = run(tmp_path, "data=table", f"data.path={place}", "trainer.max_steps=2", "metric=top1", "hydra.run.dir=r")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / MODEL).is_file() and "worst group" in done.stdout
    record = json.loads((tmp_path / "r" / "results.json").read_text())
    scores = [block for model in (record, record["zeroshot"]) for block in (model["id"], model["holdout"])]
    scores += [record["ood"]["sketch"], record["zeroshot"]["ood"]["sketch"]]
    assert all(0 <= block["worst_group"] <= block["top1"] for block in scores)
    refused = run(tmp_path, "data=folders", f"data.train={tmp_path}/photo", "metric=worst_group", "trainer.max_steps=2")
    assert refused.returncode == 1 and "the data tell no groups apart" in refused.stderr
    assert "Traceback" not in refused.stderr
