"""What the study of the neighbours makes of its runs, on results whose answer is known."""

import re
import warnings
from pathlib import Path

import pytest
from omegaconf import DictConfig

from robustft.common.imports import script
from robustft.studies import store

FOLDER = Path(__file__).parents[2] / "experiments" / "neighbours"
LABELS = {"vanilla": "vanilla fine-tuning"}
NUMBER = {"ece": 0.04, "ece_calibrated": 0.02, "nll": 0.5}
GAIN = 0.03  # of the methods that are better, over vanilla fine-tuning


@pytest.fixture(scope="module")
def study():
    return script(FOLDER / "study.py")


def record(entry, system: str, id_top1: float, ood: float) -> dict:
    of_set = {"top1": round(ood, 6), "n": 2000, **NUMBER}
    settings = dict(one.replace("{", "runs/").replace("}", "").split("=", 1) for one in entry.settings)
    seed = int(settings.get("seed", 0))
    return {
        **{"schema": 2, "entry": entry.name, "name": entry.name, "model": "tiny", "seed": seed, "partial": False},
        **{"method": settings.get("method", "counterfactual"), "mask": None, "fill": None, "beta": None},
        "alpha": float(settings["alpha"]) if "alpha" in settings else None,
        **{"temperature": None, "wall_s": 1.0, "train_images_per_s": None, "checkpoint": settings.get("checkpoint")},
        "id": {"name": "scenes", "top1": round(id_top1, 6), "n": 2000, **NUMBER},
        "ood": {f"scenes_{name}": of_set for name in ("v2", "r", "sketch", "objectnet", "a")},
        "ood_avg": round(ood, 6),
        "holdout": {"top1": round(id_top1, 6), "n": 2000, **NUMBER},
        "zeroshot": {
            "id": {"name": "scenes", "top1": 0.7, "n": 2000, **NUMBER},
            "ood": {f"scenes_{name}": {"top1": 0.8, "n": 2000} for name in ("v2", "r", "sketch", "objectnet", "a")},
            "ood_avg": 0.8,
        },
        "retention": {"context": {"top1": 0.8, "zeroshot_top1": 0.9, "top1_own_text": None, "n": 2000}},
        "display": {
            "label": LABELS.get(system, system),
            "marker": {"colour": None, "shape": None},
            "dial": None,
            "order": 50,
        },
        "protocol": {"models_at_inference": 1, "transductive": False, "benchmark": "scenes-2"},
        "metrics": {},
        "settings": {},
        "versions": {},
        "config": {"system": entry.name.rpartition("_seed-")[0], "seed": seed, **settings},
    }


@pytest.fixture
def results(study, tmp_path, monkeypatch):
    """Vanilla has 90 and 70, and so have all but those that are better, FTP and WiSE-FT."""
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "COST", tmp_path / "none.json")
    made = {}

    def add(entries) -> None:
        for entry in entries:
            system = entry.name.removeprefix("search_").partition("_")[0]
            seed = int(entry.name.rpartition("-")[2]) if "seed" in entry.name else 0
            noise = seed / 1000
            at = (0.9, 0.7 + GAIN * (system in ("ftp", "counterfactual")))
            if system == "wiseft":
                alpha = float(next(one.partition("=")[2] for one in entry.settings if one.startswith("alpha=")))
                at = (0.7 + 0.2 * alpha, 0.8 - 0.1 * alpha)
            elif system in study.CURVES:  # along the same line, those that are better above it
                made_of = study.SYSTEMS[system]
                dial = next(one.partition("=")[2] for one in entry.settings if one.startswith(f"{made_of.dial}="))
                place = made_of.values.index(float(dial))
                at = (at[0] - 0.04 * place, at[1] + 0.02 * place)
            if system == "zeroshot":
                at = (0.7, 0.8)
            made[entry.name] = record(entry, system, at[0], at[1] + noise * (system != "zeroshot"))

    add(study.search(DictConfig({})))
    store.write(tmp_path / store.FILE, made)
    add(study.entries(DictConfig({})))
    store.write(tmp_path / store.FILE, made)
    return made


def test_all_its_pages_are_made_and_a_known_gain_is_found(study, results, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a legend that leaves no room for the picture
        study.summarise(tmp_path, results)
    measures = (tmp_path / "measures.md").read_text()
    assert "| ftp | 90.0 | 73.3 | 4.0 | 2.0 | 4.0 | 2.0 | 0.50 | −10.0 | 1 | – | – |" in measures
    assert "| zeroshot | 70.0 | 80.0 |" in measures and measures.count("\n| ") == len(study.SYSTEMS) + 2 - 1
    matched = (tmp_path / "matched.md").read_text()
    curves, vanilla, wise, combined = re.split("Δ OOD to vanilla|gap to WiSE|Combinations", matched, maxsplit=3)
    assert "| counterfactual − wiseft | +3.0 [+3.0, +3.0] |" in curves and "| kd − wiseft | 0.0 [" in curves
    assert "| counterfactual − distillation | +3.0 [+3.0, +3.0] |" in curves
    assert "| counterfactual − distillation | 0.0 [0.0, 0.0] | +3.0 [+3.0, +3.0] | +3.0 [+3.0, +3.0] |" in combined
    assert "| ftp | +3.0 [+3.0, +3.0] |" in vanilla and "| ftp | +3.0 [+3.0, +3.0] |" in wise
    assert "| spd | 0.0 [0.0, 0.0] |" in vanilla and "| wiseft |" not in wise
    table = (tmp_path / "comparison.md").read_text()
    assert "search_" not in table and "gap to WiSE" in table
    assert all((tmp_path / name).stat().st_size > 20_000 for name in ("scatter.png", "gaps.png"))


def test_until_the_seeds_are_there_only_the_search_is_told(study, results, tmp_path):
    for name in [name for name in results if name.startswith("ftp") and name.endswith("_seed-3")]:
        del results[name]
    study.summarise(tmp_path, results)
    assert (tmp_path / "search.md").exists() and not (tmp_path / "comparison.md").exists()


@pytest.mark.slow
def test_the_bench_knows_every_method_by_what_is_typed(study):
    from robustft.bench.methods import MethodBench

    for made in study.SYSTEMS.values():
        if not made.of:
            assert MethodBench(study.typed(made), "tiny", 8, "32-true", "cpu").cfg.method.takes.trains
