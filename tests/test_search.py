"""Sweeps that choose their runs, and sweeps that were killed, through the real command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from robustft.cli import compose
from robustft.cli.search import distribution, open_study, typed
from robustft.cli.sources import CONF
from robustft.common.errors import UserError
from robustft.common.locks import locked

ROOT = CONF.parent
SHORT = """data.train_images=96 data.test_images=12 data.holdout=32 trainer.max_epochs=1 logger=none
    trainer.enable_progress_bar=false data.num_workers=0""".split()

# In place of a run: hold-out accuracy is best at beta 1, OOD accuracy far from it; the first run with beta < 1 fails.
STAND_IN = """
import json, math, pathlib, sys, types

def run(cfg):
    folder = pathlib.Path(cfg.run_dir)
    with open(folder / "calls", "a") as calls:
        calls.write("called ")
    failed = folder.parent / "failed"
    if cfg.beta < 1 and not failed.exists():
        failed.touch()
        raise RuntimeError("a bug")
    far = abs(math.log10(cfg.beta)) / 10
    from robustft.common import configs
    results = {"schema": 1, "config": configs.plain(cfg), "holdout": {"top1": 1 - far, "n": 9}, "ood_avg": far}
    (folder / "results.json").write_text(json.dumps(results))
    return results

module = types.ModuleType("robustft.experiment")
module.run = run
sys.modules["robustft.experiment"] = module
"""


def environment(*paths: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}


def command(folder: Path, *arguments: str, stand_in: bool = False) -> subprocess.CompletedProcess[str]:
    if stand_in:
        (folder / "stand_in").mkdir(exist_ok=True)
        (folder / "stand_in" / "sitecustomize.py").write_text(STAND_IN)
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    where = environment(folder / "stand_in")
    return subprocess.run(line, cwd=folder, env=where, capture_output=True, text=True, timeout=600)


def best_beta(answer: subprocess.CompletedProcess[str]) -> float:
    return float(answer.stdout.rsplit("beta=", 1)[1].split()[0])


@pytest.mark.slow
def test_a_search_maximises_holdout_and_goes_on(tmp_path):
    line = ["-m", "hydra/sweeper=optuna", "beta=tag(log, interval(0.01, 100))", "mask=object,context", "sweep=mine"]
    first = command(tmp_path, *line, "hydra.sweeper.trials=6", stand_in=True)
    folder = tmp_path / "runs" / "sweeps" / "mine"
    assert first.returncode == 1 and "1 of the runs in runs/sweeps/mine failed" in first.stderr
    assert "best of 5 trials by hold-out accuracy" in first.stdout and 0.1 < best_beta(first) < 10
    calls = {path.parent.name: path.read_text().split() for path in folder.glob("*/calls")}
    assert len(calls) == 6 and all(len(one) == 1 for one in calls.values())
    more = command(tmp_path, *line, "hydra.sweeper.trials=8", stand_in=True)
    assert more.returncode == 0, more.stderr
    assert "5 of 8 trials done before" in more.stdout and "best of 8 trials" in more.stdout
    again = {path.parent.name: path.read_text().split() for path in folder.glob("*/calls")}
    assert sorted(len(again[name]) for name in calls) == [1] * 5 + [2] and len(again) == 8  # the failed one again
    done = command(tmp_path, *line, "hydra.sweeper.trials=8", stand_in=True)
    assert "8 of 8 trials done before" in done.stdout and best_beta(done) == best_beta(more)
    assert all(name.startswith("beta-") and "_mask-" in name for name in again)


def test_nothing_but_the_holdout_can_be_asked_for(tmp_path):
    for setting in ("hydra.sweeper.objective=ood_avg", "hydra.sweeper.direction=minimize"):
        answer = command(tmp_path, "-m", "hydra/sweeper=optuna", "beta=interval(1, 2)", setting)
        assert answer.returncode == 1 and setting.split("=")[0].rsplit(".")[-1] in answer.stderr
    nothing = command(tmp_path, "-m", "hydra/sweeper=optuna", stand_in=True)
    assert nothing.returncode == 1 and nothing.stderr.startswith("error: nothing to search")


def test_what_is_drawn_follows_what_is_typed():
    drawn = {
        "beta=interval(1, 3)": optuna.distributions.FloatDistribution(1, 3),
        "beta=tag(log, interval(0.1, 3))": optuna.distributions.FloatDistribution(0.1, 3, log=True),
        "seed=tag(int, interval(1, 3))": optuna.distributions.IntDistribution(1, 3),
        "mask=object,context": optuna.distributions.CategoricalDistribution(["object", "context"]),
        "seed=range(2)": optuna.distributions.CategoricalDistribution(["0", "1"]),
    }
    for line, expected in drawn.items():
        assert distribution(compose.parse([line])[0]) == expected
    with pytest.raises(UserError, match="beta"):
        distribution(compose.parse(["beta=tag(log, interval(0, 3))"])[0])
    assert typed({"beta": 1.23456, "optimizer.lr": 1.2345e-5, "mask": "object"}) == [
        "beta=1.23", "optimizer.lr=1.23e-05", "mask=object"
    ]  # fmt: skip


def test_trials_that_a_kill_cut_off_are_queued_again(tmp_path):
    space = {"beta": optuna.distributions.FloatDistribution(1, 3)}
    cut_off = open_study(tmp_path, space, seed=0).ask(space)
    study = open_study(tmp_path, space, seed=0)
    assert study.ask(space).params == cut_off.params
    other = {"beta": optuna.distributions.CategoricalDistribution(["1", "2"])}
    assert not open_study(tmp_path, other, seed=0).trials  # another space, another study in the same file


@pytest.mark.slow
def test_a_search_with_real_runs(tmp_path):
    answer = command(tmp_path, "experiment=search_holdout", "hydra.sweeper.trials=3", "sweep=mine", *SHORT)
    assert answer.returncode == 0, answer.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/sweeps/mine/*/results.json")]
    assert len(records) == 3
    best = max(record["holdout"]["top1"] for record in records)
    assert f"best of 3 trials by hold-out accuracy, {best:.1%}" in answer.stdout


@pytest.mark.slow
def test_a_killed_sweep_runs_nothing_twice(tmp_path):
    line = ["-m", "mask.threshold=0.3,0.5", "beta=0.3,3", *SHORT]
    folder = tmp_path / "runs" / "sweeps"
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *line], cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(done := list(folder.glob("*/*/results.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    started.send_signal(signal.SIGKILL)
    started.wait()
    done = list(folder.glob("*/*/results.json"))
    assert 2 <= len(done) < 4
    before = {path: path.stat().st_mtime_ns for path in done}
    answer = command(tmp_path, *line)
    assert answer.returncode == 0, answer.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert answer.stdout.count("finished before, skipped") == len(done)
    assert answer.stdout.count("training:") == 4 - len(done)
    assert len(list(folder.glob("*/*/results.json"))) == 4


def test_one_search_at_a_time(tmp_path):
    line = ["-m", "hydra/sweeper=optuna", "beta=tag(log, interval(0.01, 100))", "sweep=mine"]
    with locked(tmp_path / "runs/sweeps/mine/search"):
        answer = command(tmp_path, *line, stand_in=True)
    assert answer.returncode == 1 and answer.stderr.count("\n") == 1
    assert "another process is at work on this search" in answer.stderr
