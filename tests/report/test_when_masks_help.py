"""What the study of masks makes of its runs, on results whose answer is known."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "when_masks_help"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("when_masks_help", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(study, gain: float = 0.02, shift: float = 0.0) -> dict:
    """Without a mask OOD is 1 − ID/2; object masks lie ``gain`` above it in contexts and ``shift`` in styles."""
    results = {}
    for one in study.entries(None):
        settings = dict(setting.split("=", 1) for setting in one.settings)
        if one.name == "zeroshot":
            results[one.name] = {}
            continue
        beta, masked = float(settings["beta"]), settings["mask"] == "object"
        top1 = 0.9 - 0.02 * beta + 0.0001 * int(settings["seed"])
        on = {"scenes_objectnet": gain, "scenes_a": gain, "scenes_r": shift, "scenes_sketch": shift}
        ood = {name: {"top1": 1 - top1 / 2 + masked * on.get(name, 0)} for name in study.GROUPS["all shifts"]}
        share = 0.1 + masked * 0.1 + 0.001 * int(settings["seed"])
        rows = ["step,train/masked,train/distance", *(f"{step},{share},{1 / step}" for step in (1, 2, 4, 8)), "9,,"]
        results[one.name] = {"id": {"top1": top1}, "ood": ood, "files": {study.METRICS: "\n".join(rows) + "\n"}}
    return results


def test_a_known_gain_is_found_where_it_is(study):
    results = made(study)
    cell = study.CELLS[study.OURS]
    for group, gain in {"all shifts": 2 / 5 * 0.02, "contexts": 0.02, "styles": 0.0, "V2": 0.0}.items():
        assert study.outcomes(results, cell, group) == pytest.approx(dict.fromkeys(study.SEEDS, gain))
    contrasts = {name[0]: found.mean for name, found, _ in study.primary(results)}
    assert contrasts == pytest.approx({"1": 0.008, "2": 0.0, "3": 0.008, "4": 0.008, "5": 0.02}, abs=1e-12)


def test_a_run_beyond_the_curve_counts_by_its_end_and_is_marked(study):
    results = made(study)
    cell = study.CELLS["β = 3"]
    assert study.outside(results, cell) == 0
    for seed in study.SEEDS:
        results[study.run_of(cell.system, cell.condition, 3.0, seed)]["id"]["top1"] = 0.5
    assert study.outside(results, cell) == len(study.SEEDS)
    assert study.outcomes(results, cell, "contexts") == pytest.approx(dict.fromkeys(study.SEEDS, 0.02))


def test_holm_by_hand(study):
    assert study.holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])


def test_tables_are_left_only_when_every_run_is_there(study, tmp_path):
    results = made(study)
    study.summarise(tmp_path, dict(list(results.items())[:-1]))
    assert not list(tmp_path.iterdir())
    study.summarise(tmp_path, results)
    table = (tmp_path / "conditions.md").read_text().splitlines()
    assert len(table) == 2 + len(study.CELLS)
    row = next(line for line in table if line.startswith(f"| {study.OURS} "))
    assert "| 21.3% | 0.1250 |" in row and "+2.0 [" in row
    assert len((tmp_path / "primary.md").read_text().splitlines()) == 2 + len(study.PRIMARY)


def test_the_plan_names_what_is_run(study):
    entries = list(study.entries(None))
    assert f"{len(entries)} runs" in (FOLDER / "plan.md").read_text() and len(entries) <= 400
    assert len({one.settings for one in entries}) == len(entries)
