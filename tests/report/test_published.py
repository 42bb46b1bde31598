"""Published numbers beside ours."""

import json
from pathlib import Path

from robustft.evaluation.results import Score, Scores, results_record
from robustft.report.published import beside, read

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
