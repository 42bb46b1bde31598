"""The gap to the WiSE-FT curve, image-by-image differences, and the tables that stand apart by recipe."""

import csv
import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from robustft.report import paired
from robustft.report.__main__ import main, panels_of
from robustft.report.groups import group_over_seeds
from robustft.report.runs import Run, read_runs
from robustft.report.table import sampling
from robustft.report.wise import curves, gap

# Published, ViT-B/16: α from 0 in tenths, ID and the average of five shifts in %.
PUBLISHED = [
    (68.3, 58.4), (72.9, 60.8), (76.4, 62.5), (78.9, 63.3), (80.5, 63.5), (81.7, 63.0),
    (82.4, 61.9), (82.5, 60.6), (82.5, 58.9), (82.1, 56.6), (81.3, 53.7),
]  # fmt: skip


@pytest.mark.parametrize(
    ("system", "expected", "beyond"),
    [
        ((82.4, 63.3), 1.4, False),  # masked counterfactuals
        ((83.15, 62.54), 62.54 - 60.6, True),  # CaRot
        ((82.76, 64.07), 64.07 - 60.6, True),  # TRACER
        ((82.72, 59.45), 59.45 - 60.6, True),  # FLYP
        ((81.3, 53.7), 53.7 - (63.5 - 0.5 * 0.8 / 1.2), False),  # vanilla: between α = 0.4 and 0.5
        ((60.0, 63.0), -0.5, False),  # less ID than the whole curve: its highest OOD counts
    ],
)
def test_gap_to_the_published_curve(system, expected: float, beyond: bool) -> None:
    found = gap(system, PUBLISHED)
    assert (found.ood, found.beyond) == (pytest.approx(expected), beyond)


def test_gap_against_a_fine_grid() -> None:
    """Each straight line cut into many points, the rule applied to them alone."""
    random = np.random.default_rng(0)
    for _ in range(50):
        curve = [tuple(point) for point in random.random((6, 2))]
        model = tuple(random.random(2))
        share = np.linspace(0, 1, 20_001)
        fine = np.concatenate(
            [np.outer(1 - share, a) + np.outer(share, b) for a, b in itertools.pairwise(np.array(curve))]
        )
        reached = fine[fine[:, 0] >= model[0]]
        best = reached[:, 1].max() if len(reached) else max(curve)[1]
        found = gap(model, curve)
        assert found.beyond == (len(reached) == 0)
        assert found.ood == pytest.approx(model[1] - best, abs=2e-4)


ALPHAS = {0.25: (0.75, 0.69), 0.5: (0.80, 0.65), 0.75: (0.82, 0.60)}  # ID and OOD, of seed 0


@pytest.fixture
def curve(make_run, tmp_path: Path) -> Path:
    """Two seeds: vanilla and its WiSE-FT, another model's WiSE-FT, a method."""
    for seed in (1, 2):
        up = seed / 100
        make_run("finetune", seed, 0.84 + up, 0.50, name=f"vanilla_seed-{seed}")
        for alpha, point in ALPHAS.items():
            config = {"checkpoint": f"/there/vanilla_seed-{seed}/model.safetensors"}
            make_run("wiseft", seed, point[0] + up, point[1], alpha=alpha, config=config)
            config = {"checkpoint": "/there/other/model.safetensors"}
            make_run("wiseft", seed, point[0], 0.9, alpha=alpha, config=config, name=f"other-{alpha}-{seed}")
        make_run("flyp", seed, 0.81, 0.70 + up, name=f"flyp-{seed}")
        make_run("tracer", seed, 0.90, 0.55, name=f"tracer-{seed}")
    return tmp_path / "runs"


def test_curves_are_vanillas(curve: Path) -> None:
    (groups,) = panels_of(read_runs([curve]))
    ends = (0.65, pytest.approx(0.66)), {1: (0.85, pytest.approx(0.5)), 2: (0.86, pytest.approx(0.5))}
    for seed, points in curves(groups).items():
        between = [(pytest.approx(x + seed / 100), pytest.approx(y)) for x, y in ALPHAS.values()]
        assert points == [ends[0], *between, ends[1][seed]]
    assert sorted(curves(groups)) == [1, 2]
    assert curves([group for group in groups if group.record["method"] != "wiseft"]) == {}
    assert curves([group for group in groups if not group.reference]) == {}


def test_curves_are_found_by_their_end_too(make_run, tmp_path: Path) -> None:
    """Runs of their own are in folders called by the time."""
    make_run("finetune", 0, 0.85, 0.5)
    for alpha, point in (ALPHAS | {1.0: (0.85, 0.5)}).items():
        config = {"checkpoint": "/elsewhere/2026-01-01_00-00-00/model.safetensors"}
        make_run("wiseft", 0, *point, alpha=alpha, config=config)
    (groups,) = panels_of(read_runs([tmp_path / "runs"]))
    expected = [(0.65, 0.66), *ALPHAS.values(), (0.85, 0.5)]
    assert curves(groups) == {0: [(x, pytest.approx(y)) for x, y in expected]}
    coarse = [group for group in groups if group.record["alpha"] != 0.75]
    assert curves(coarse) == {}  # nothing between 0.5 and 1


def test_the_column(curve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(curve), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    # Seed 1 has (0.81, 0.65) on its curve; seed 2 is between (0.77, 0.69) and (0.82, 0.65).
    each = [0.71 - 0.65, 0.72 - (0.65 + 0.04 * 0.01 / 0.05)]
    assert float(rows["flyp"]["wise_gap"]) == pytest.approx(np.mean(each))
    assert float(rows["flyp"]["wise_gap_std"]) == pytest.approx(np.std(each, ddof=1))
    assert (rows["flyp"]["wise_gap_beyond"], rows["tracer"]["wise_gap_beyond"]) == ("0", "1")
    assert float(rows["tracer"]["wise_gap"]) == pytest.approx(0.05)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "gap to WiSE" in text and "+5.0 ± 0.0†" in text and "† where it never reaches that ID" in text
    capsys.readouterr()
    assert main([str(curve / "flyp-1"), "--out", str(tmp_path / "alone")]) == 0
    assert "gap to WiSE" not in capsys.readouterr().out


def test_sampling_error(make_run, tmp_path: Path) -> None:
    folder = make_run("finetune", 0, 0.8, 0.6)
    (group,) = group_over_seeds([Run(folder / "results.json", json.loads((folder / "results.json").read_text()))])
    assert sampling(group, "id") == pytest.approx(1.96 * math.sqrt(0.8 * 0.2 / 1000))
    each = [1.96 * math.sqrt(p * (1 - p) / 1000) for p in (0.58, 0.59, 0.60, 0.61, 0.62)]
    assert sampling(group, "scenes_v2") == pytest.approx(each[0])
    assert sampling(group, "ood_avg") == pytest.approx(math.sqrt(sum(e**2 for e in each)) / 5)
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "Sampling error of one run, 95%, at most: ID ± 3.0, OOD avg ± 1.4, V2 ± 3.1" in text


SIZES = {"scenes": 400, "scenes_v2": 300, "scenes_r": 200, "scenes_sketch": 100, "scenes_objectnet": 50, "scenes_a": 80}


def leave_predictions(folder: Path, seed: int, level: float) -> dict[str, np.ndarray]:
    """Write a file of predictions at random, in an order of its own; whether each is right, by image."""
    random = np.random.default_rng(seed)
    right = {name: (random.random(n) < level).astype(int) for name, n in SIZES.items()}
    with gzip.open(folder / "predictions.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "image", "correct"])
        for name, values in right.items():
            for image in random.permutation(len(values)):
                writer.writerow([name, f"{image:04}", values[image]])
    return right


def test_image_by_image(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {}
    for number, (method, seed) in enumerate(itertools.product(("finetune", "flyp"), (1, 2))):
        folder = make_run(method, seed, name=f"{method}_seed-{seed}")
        kept[method, seed] = leave_predictions(folder, number, 0.5 if method == "finetune" else 0.7)
    make_run("kd", 1, name="kd_seed-1")  # without predictions: left out
    groups = {group.label: group for group in group_over_seeds(read_runs([tmp_path / "runs"]))}
    vanilla, flyp = groups["vanilla fine-tuning"], groups["flyp"]
    for name in SIZES:  # McNemar's form, of one run each
        one = paired.difference([kept["flyp", 1][name]], [kept["finetune", 1][name]])
        ours, theirs = kept["flyp", 1][name] == 1, kept["finetune", 1][name] == 1
        n10, n01, n = int((ours & ~theirs).sum()), int((~ours & theirs).sum()), SIZES[name]
        assert one.mean == pytest.approx((n10 - n01) / n)
        assert one.error == pytest.approx(math.sqrt(n10 + n01 - (n10 - n01) ** 2 / n) / n)
    found = paired.differences(flyp, vanilla)
    errors = []
    for name, n in SIZES.items():
        each = [sum(kept["flyp", s][name][i] - kept["finetune", s][name][i] for s in (1, 2)) / 2 for i in range(n)]
        mean = sum(each) / n
        error = math.sqrt(sum((value - mean) ** 2 for value in each)) / n
        assert (found[name].mean, found[name].error) == (pytest.approx(mean), pytest.approx(error))
        errors += [] if name == "scenes" else [error]
    assert found["ood_avg"].error == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / 5)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "o"), "--baseline", "vanilla", "--paired"]) == 0
    text = (tmp_path / "o" / "comparison.md").read_text()
    line = next(line for line in text[text.index("image by image") :].splitlines() if line.startswith("| flyp"))
    assert line.startswith(f"| flyp | +{100 * found['scenes'].mean:.1f} [") and "kd" not in line
    capsys.readouterr()


def test_mistakes_of_pairing(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(method, 1, name=method) for method in ("finetune", "flyp")]

    def said(*arguments: str) -> str:
        assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "o"), "--paired", *arguments]) == 1
        return capsys.readouterr().err

    assert "--baseline NAME" in said()
    assert "predictions.csv.gz is missing" in said("--baseline", "vanilla")
    leave_predictions(folders[0], 1, 0.5)
    assert "no other run" in said("--baseline", "vanilla")
    (folders[1] / "predictions.csv.gz").write_bytes(gzip.compress(b"set,image,correct\nscenes,0001,1\n"))
    assert "its images of scenes are not those of" in said("--baseline", "vanilla")
    (folders[1] / "predictions.csv.gz").write_bytes(gzip.compress(bytes(2**24)))
    paired._read.cache_clear()
    assert "a line in it has no end" in said("--baseline", "vanilla")
    (folders[1] / "predictions.csv.gz").write_bytes(b"nothing")
    paired._read.cache_clear()
    assert "cannot be read" in said("--baseline", "vanilla")


def test_recipes_stand_apart(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, recipe in itertools.product(("finetune", "flyp"), ("model", "typed", "common", "published")):
        folder = make_run(method, 1, name=f"{method}-{recipe}", config={"recipe": {"name": recipe}})
        record = json.loads((folder / "results.json").read_text())
        record["protocol"] = {"recipe": recipe}
        (folder / "results.json").write_text(json.dumps(record))
    panels = panels_of(read_runs([tmp_path / "runs"]))
    seen = [
        {(run.record["protocol"] or {}).get("recipe") for g in groups if not g.reference for run in g.runs}
        for groups in panels
    ]
    assert seen == [{"model", "typed"}, {"common"}, {"published"}]
    assert all(sum(group.reference for group in groups) == 1 for groups in panels)
    options = ["--out", str(tmp_path / "o"), "--html", str(tmp_path / "page.html"), "--baseline", "finetune-common"]
    assert main([str(tmp_path / "runs"), *options]) == 0
    text = (tmp_path / "o" / "comparison.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### tiny on Scenes: top-1 accuracy in %",
        "### tiny on Scenes, recipe=common: top-1 accuracy in %",
        "### tiny on Scenes, recipe=published: top-1 accuracy in %",
    ]
    assert "recipes differ as much as methods do" in text
    assert "tiny on Scenes, recipe=published" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
