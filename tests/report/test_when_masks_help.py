"""What the study of masks makes of its runs, on results whose answer is known."""

from pathlib import Path

import pytest

from robustft.common.imports import script
from robustft.report.stats import holm

FOLDER = Path(__file__).parents[2] / "experiments" / "when_masks_help"
GAIN = {"object, single-fill": 0.02, "object, no-fill": 0.012, "random, single-fill": 0.005}  # on contexts
LESS = 0.002  # at the condition of 12 epochs


@pytest.fixture(scope="module")
def study():
    return script(FOLDER / "study.py")


def made(study) -> dict:
    """OOD without a mask is a parabola in ID, another one for every condition, and of another height for every seed;
    masked runs lie above it on contexts alone, and between its points.
    """
    results = {}
    conditions = list(study.CONDITIONS)
    for one in study.entries(None):
        words, condition, beta, seed = one.name.split("_")
        settings = dict(setting.split("=", 1) for setting in one.settings)
        number = next(k for k, name in enumerate(conditions) if name.replace(",", "").replace(" ", "-") == condition)
        seed, beta = int(settings["seed"]), float(settings["beta"])
        system = next((name for name in study.SYSTEMS if _word(name) == words), study.NONE)
        top1 = 0.92 - 0.015 * beta + 0.003 * number + 0.0005 * seed
        top1 -= 0.0 if system == study.NONE else 0.007
        base = 0.8 + 0.001 * seed - 0.4 * (top1 - 0.9) - (5 + number) * (top1 - 0.9) ** 2
        gain = GAIN.get(system, 0.0) - LESS * (condition == "12-epochs" and system in GAIN)
        ood = {name: {"top1": base} for name in study.GROUPS[study.ALL]}
        for name in study.GROUPS["contexts"]:
            ood[name] = {"top1": base + gain}
        rows = ["step,train/masked,train/distance,disagreement/factual,disagreement/object_single"]
        rows += [f"{step},{0.1 + 0.001 * seed},{1 / step},," for step in (1, 2, 4, 8)]
        rows += ["0,,,0.0,0.5", "8,,,0.25,0.75"] if "disagreement=1" in one.settings else []
        files = {study.METRICS: "\n".join(rows) + "\n"}
        results[one.name] = {"id": {"top1": top1}, "ood": ood, "files": files}
    return results


def _word(name: str) -> str:
    return name.replace(", ", "-").replace(",", "").replace(" ", "-")


@pytest.fixture(scope="module")
def results(study):
    return made(study)


def test_a_known_gain_is_found_where_it_is(study, results):
    cell = study.CELLS[study.OURS]
    for group, gain in {"all shifts": 2 / 5 * 0.02, "without V2": 0.01, "contexts": 0.02, "styles": 0.0}.items():
        found = study.above_the_curve(results, cell, group)
        assert found == pytest.approx(dict.fromkeys(study.SEEDS, gain), abs=1e-9)
    later = study.above_the_curve(results, study.CELLS["12 epochs"], "contexts")
    assert later == pytest.approx(dict.fromkeys(study.FEW, 0.018), abs=1e-9)


def test_what_gains_nothing_comes_out_at_nothing_where_straight_lines_see_a_gain(study, results):
    for name in ("no mask, β = 0.55 (placebo)", "context, single-fill", "map of the teacher"):
        found = study.above_the_curve(results, study.CELLS[name], "contexts")
        assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-9)
        lines = study.above_the_chords(results, study.CELLS[name], "contexts")
        assert all(value > 1e-5 for value in lines.values())


def test_contrasts_and_interactions_by_hand(study, results):
    contrasts = {name[0]: found.mean for name, found, _ in study.primary(results)}
    expected = {"1": 0.4 * 0.02, "2": 0.4 * 0.008, "3": 0.4 * 0.015, "4": 0.4 * 0.02, "5": 0.02}
    assert contrasts == pytest.approx(expected, abs=1e-9)
    level = study.contrast(results, study.EXPLORED["12 epochs, above the base"])
    assert level == pytest.approx(dict.fromkeys(study.FEW, -LESS / 2), abs=1e-9)
    table = study.tests(results)
    assert "| β = 0.1 above β = 0.3 and 1: of 12 epochs, minus of 5 | +0.00 [" in table.replace("−0.00", "+0.00")


def test_runs_beyond_their_curves_leave_a_cell_without_a_verdict(study):
    results = made(study)
    cell = study.CELLS["map of the teacher"]
    assert study.outside(results, cell) == 0
    for seed in study.FEW:
        results[study.run_of(cell.system, cell.condition, 1.0, seed)]["id"]["top1"] = 0.99
    assert study.outside(results, cell) == 0.5
    line = next(x for x in study.conditions(results).splitlines() if x.startswith("| map of the teacher"))
    assert line.endswith("| 50% | not matched |")


def test_verdicts(study):
    def said(low: float, high: float) -> str:
        return study.verdict(study.Difference((low + high) / 2, low, high, 0.1, 5))

    assert said(0.001, 0.01) == "helps" and said(-0.01, -0.001) == "hurts"
    assert said(-0.001, 0.0049) == "less than 0.5" and said(-0.001, 0.0051) == "undecided"


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])


def test_pages_are_left_only_when_every_run_is_there(study, results, tmp_path):
    study.summarise(tmp_path, dict(list(results.items())[:-1]))
    assert not list(tmp_path.iterdir())
    study.summarise(tmp_path, results)
    table = (tmp_path / "conditions.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith(f"| {study.OURS} "))
    assert "| +2.00 [" in row and row.endswith("| 0% | helps |")
    assert "| no mask, 2 epochs | – | 0.1250 | 0.2500 | 0.7500 |" in table
    assert f"| {study.OURS} | 11.3% | 0.1250 | 0.2500 | 0.7500 |" in table
    pages = (tmp_path / "primary.md").read_text()
    assert all(f"| {name} |" in pages for name in (*study.PRIMARY, *study.EXPLORED, *study.INTERACTIONS))
    assert (tmp_path / "forest.png").stat().st_size > 10_000


def test_the_plan_names_what_is_run(study):
    entries = list(study.entries(None))
    assert f"{len(entries)} runs" in (FOLDER / "plan.md").read_text() and len(entries) <= 400
    assert len({one.settings for one in entries}) == len(entries)
