"""Published numbers beside ours."""

import json
from pathlib import Path

import pytest

from robustft.common.errors import UserError
from robustft.evaluation.results import Score, Scores, results_record, write_results
from robustft.report.__main__ import main
from robustft.report.published import beside, read, rows

CSV = """model,system,imagenet,imagenet_v2,imagenet_r,imagenet_sketch,objectnet,imagenet_a,ood_avg
vitb32,vanilla,75.9,64.7,57.0,39.8,39.5,20.0,44.2
vitb16,lpft (another probe),81.7,71.6,72.9,48.4,,49.1,
"""
SHIFTS = ("imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet", "imagenet_a")


def record(model: str, id_top1: float, ood: float, partial: bool = False, id_name: str = "imagenet"):
    shifts = {name: Score(ood, 1000) for name in SHIFTS}
    scores = Scores(id_name, Score(id_top1, 1000), shifts, holdout=Score(0.5, 100))
    return results_record(
        scores, name="x", method="finetune", model=model, seed=0, partial=partial, wall_s=1.0, config={}, versions={},
        zeroshot=None, mask=None, fill=None,
    )  # fmt: skip


def test_ours_beside_published(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text(CSV)
    published = read(tmp_path / "published.csv")
    assert published["vitb16", "lpft"].top1.keys() == {
        "imagenet", "imagenet_v2", "imagenet_r", "imagenet_sketch", "imagenet_a",
    }  # fmt: skip
    results = {
        "vanilla_seed-1": record("vitb32", 0.76, 0.45),
        "vanilla_seed-2": record("vitb32", 0.77, 0.46),
        "lpft_seed-1": record("vitb16", 0.80, 0.5),
        "kd_seed-1": record("vitb32", 0.1, 0.1),
    }
    text = beside(results, published)
    assert text is not None
    vanilla, lpft = text.splitlines()[4:6]
    assert vanilla.startswith("| vitb32 | vanilla | 2 | 75.9 / 76.5 / +0.6 | 64.7 / 45.5 / −19.2 |")
    assert vanilla.endswith("| 44.2 / 45.5 / +1.3 |")
    assert lpft.startswith("| vitb16 | lpft (another probe) | 1 |")
    assert "| – / 50.0 / – |" in lpft  # ObjectNet was not published
    assert "kd" not in text and "cut short" not in text
    assert "cut short" in str(beside({"vanilla": record("vitb32", 0.5, 0.5, partial=True)}, published))


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text(CSV)
    published = read(tmp_path / "published.csv")
    assert beside({"vanilla_seed-1": record("tiny", 0.5, 0.5)}, published) is None
    assert beside({"vanilla_seed-1": record("vitb32", 0.5, 0.5, id_name="scenes")}, published) is None


def test_the_shipped_table_averages_its_shift_sets() -> None:
    path = Path(__file__).parents[2] / "experiments" / "comparison" / "published.csv"
    for key, published in read(path).items():
        row = published.top1
        if "ood_avg" in row:
            mean = sum(row[name] for name in SHIFTS) / 5
            assert abs(mean - row["ood_avg"]) < 0.0006, (key, json.dumps(row))


NEIGHBOURS = Path(__file__).parents[2] / "experiments" / "neighbours" / "published.csv"


def test_the_table_of_neighbours() -> None:
    """Averages are of rounded numbers, themselves rounded; every row says where it is from."""
    known = read(NEIGHBOURS)
    for key, published in known.items():
        row = published.top1
        if "ood_avg" in row:
            assert abs(sum(row[name] for name in SHIFTS) / 5 - row["ood_avg"]) < 0.00101, key
    listed = rows(NEIGHBOURS)
    assert len(listed) == len(known) and all(row["source"] and None not in row for row in listed)
    (flyp,) = [row for row in listed if row["system"] == "flyp_as_published"]
    assert flyp["objectnet"] == "58.7" and "ObjectNet is wrong" in flyp["trap"]
    assert known["vitb16", "flyp"].top1["objectnet"] == pytest.approx(0.548)
    assert known["vitb16", "tracer"].top1["ood_avg"] == pytest.approx(0.641)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CSV + "vitb16,lpft (ours),1,1,1,1,1,1,1\n", "line 4: vitb16 lpft is there twice"),
        (CSV.replace("75.9", "much"), "line 2: could not convert"),
        (CSV.replace("objectnet", "things"), "has no column objectnet"),
    ],
)
def test_mistakes_in_a_table(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "published.csv").write_text(text)
    with pytest.raises(UserError, match=expected):
        read(tmp_path / "published.csv")


def test_runs_beside_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command: runs are called by their names, seeds are averaged."""
    for number, (name, top1) in enumerate((("finetune_vitb32", 0.76), ("finetune_vitb32", 0.77), ("kd_vitb32", 0.5))):
        made = {**record("vitb32", top1, 0.45), "name": name, "seed": number}
        write_results(tmp_path / "runs" / str(number) / "results.json", made)
    (tmp_path / "published.csv").write_text(CSV)
    line = [str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--published", str(tmp_path / "published.csv")]
    assert main(line) == 0
    assert "| vitb32 | vanilla | 2 | 75.9 / 76.5 / +0.6 |" in (tmp_path / "out" / "comparison.md").read_text()
    (tmp_path / "published.csv").write_text(CSV.splitlines()[0] + "\nvitb32,flyp,1,1,1,1,1,1,1\n")
    capsys.readouterr()
    assert main(line) == 1
    assert "none of its systems is among the runs on ImageNet. Here are vanilla, kd" in capsys.readouterr().err
