"""Synthetic runs: results files as a sweep leaves them, without training anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustft.evaluation.results import Score, Scores, results_record, write_results

SHIFTS = ("scenes_v2", "scenes_r", "scenes_sketch", "scenes_objectnet", "scenes_a")
MakeRun = Callable[..., Path]


def scores(id_top1: float, ood: float, shifts: tuple[str, ...] = SHIFTS, holdout: float = 0.5) -> Scores:
    """Shift k of 5 has the accuracy `ood` + (k − 2) points, so that their mean is `ood`."""
    n = 1000
    by_set = {name: Score(round((ood + (k - 2) / 100) * n) / n, n) for k, name in enumerate(shifts)}
    return Scores("scenes", Score(round(id_top1 * n) / n, n), by_set, holdout=Score(holdout, 20))


def retained(tasks: dict[str, tuple[float, float]] | None) -> dict[str, dict[str, Any]] | None:
    """The results' block from (zero-shot, after) of each task."""
    if tasks is None:
        return None
    return {
        name: {"top1": after, "zeroshot_top1": before, "top1_own_text": None, "n": 100}
        for name, (before, after) in tasks.items()
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a results.json under tmp_path/runs and return its folder."""

    def make(method: str = "counterfactual", seed: int = 0, id_top1: float = 0.85, ood: float = 0.6, **given) -> Path:
        mask, fill = given.pop("mask", None), given.pop("fill", None)
        dials = {key: given.pop(key, None) for key in ("beta", "alpha", "temperature")}
        name = given.pop("name", f"{method}-{fill}-{dials['beta']}-{dials['alpha']}-seed-{seed}")
        config = {"method": method, "seed": seed, "data": {"num_workers": seed}, "optimizer": {"lr": 5e-4}}
        record = results_record(
            scores(id_top1, ood, given.pop("shifts", SHIFTS), given.pop("holdout", 0.5)),
            **{"name": name, "method": method, "model": given.pop("model", "tiny"), "seed": seed},
            **{"partial": given.pop("partial", False), "wall_s": 9.0, "versions": {}},
            zeroshot=scores(*given.pop("zeroshot", (0.65, 0.66))),
            retention=retained(given.pop("retention", None)),
            mask=mask,
            fill=fill,
            protocol={"benchmark": given.pop("benchmark", "scenes-2")},
            config={**config, "mask": mask, "fill": fill, **dials, **given.pop("config", {})},
            **dials,
        )
        assert not given, f"unknown: {given}"
        folder = tmp_path / "runs" / name
        write_results(folder / "results.json", record)
        return folder

    return make


@pytest.fixture
def sweep(make_run: MakeRun, tmp_path: Path) -> Path:
    """3 seeds of: vanilla, a WiSE-FT curve of three points, object+single at 2 thresholds × 2 β."""
    for seed in range(3):
        make_run("finetune", seed, 0.86 + seed / 100, 0.50 + seed / 100)
        for alpha, shift in ((0.0, 0.66), (0.5, 0.67), (1.0, 0.5 + seed / 100)):
            config = {"checkpoint": f"runs/sweeps/a/finetune_seed-{seed}/model.safetensors"}
            make_run("wiseft", seed, 0.65 + 0.2 * alpha + seed / 100, shift, alpha=alpha, config=config)
        for threshold in (0.3, 0.5):
            for beta in (1, 3):
                mask = {"kind": "object", "threshold": threshold, "cam": "relevance", "source": "student"}
                name = f"object-{threshold}-{beta}-{seed}"
                top1 = {
                    "holdout": 0.55,
                    "id_top1": 0.85 + seed / 100 - beta / 100,
                    "ood": 0.6 + seed / 500 + beta / 100,
                }
                make_run(seed=seed, mask=mask, fill="single", beta=beta, name=name, **top1)
    return tmp_path / "runs"
