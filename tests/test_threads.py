"""The number of threads: measured for the model, recorded, and taken again by whoever goes on with the run."""

import json
import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from robustft import experiment
from robustft.cli import identity
from robustft.cli.main import _processes_here, run_in
from robustft.common import threads
from robustft.common.errors import UserError
from robustft.training.checkpoints import read_position
from tests.small import ROOT, UNTRAINED, command, composed, do, work  # noqa: F401


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(threads, "ASKED", "")
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)


def test_as_many_as_pay_off_and_there_are_cores(four_cores, monkeypatch):
    assert [threads.choose(most) for most in (1, 2, 8, None)] == [1, 2, 4, 4]
    assert [threads.choose(None, processes) for processes in (2, 8)] == [2, 1]
    monkeypatch.setattr(threads, "ASKED", "3")
    assert threads.choose(1) == 3


def test_they_are_chosen_before_torch_is_imported():
    """OpenMP reads how long its threads wait for each other when it is loaded."""
    code = (
        "import os, sys; from robustft.common import threads; threads.use(threads.choose(1));"
        "assert 'torch' not in sys.modules;"
        "import torch; print(torch.get_num_threads(), os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {key: value for key, value in os.environ.items() if "OMP" not in key}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.stdout.split() == ["1", threads.SPINS], said.stderr


def test_a_run_records_them_and_goes_on_with_them(work, monkeypatch):  # noqa: F811
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "ASKED", "")
    try:
        record = do(work / "two", "method=finetune", "trainer.max_steps=1", "threads=2")
        assert record["config"]["threads"] == 2 and record["versions"]["threads"] == "2"
        (work / "two" / "results.json").unlink()  # as if interrupted before its end
        taken = []
        monkeypatch.setattr(experiment, "run", lambda cfg: taken.append((cfg.threads, torch.get_num_threads())))
        threads.use(1)
        run_in(composed("method=finetune", "trainer.max_steps=1", "resume=auto"), work / "two", [])
        assert taken == [(2, 2)]
        assert read_position(work / "two").threads == 2  # it stands beside the state, too
    finally:
        threads.use(before)


def test_another_number_does_not_go_on():
    cfg = composed("threads=1")
    with pytest.raises(UserError, match="threads=1: the run was started with 2"):
        identity.take_recorded(cfg, {"threads": 2})
    identity.take_recorded(cfg, {"threads": 1})
    identity.take_recorded(cfg := composed(), {"threads": 3})
    assert cfg.threads == 3 and OmegaConf.select(composed(), "threads") is None


def test_a_launchers_processes_choose_as_the_run_alone_does(tmp_path, monkeypatch):
    """joblib tells its workers how many threads each may take: that is no wish of the user's."""
    found = {}
    for asked in ("", "1"):
        for jobs in (1, 2):
            options = (f"hydra.launcher.n_jobs={jobs}", f"sweep=jobs{jobs}{asked}")
            line = [sys.executable, str(ROOT / "run.py"), "-m", "seed=0,1", *UNTRAINED, "method=zeroshot", *options]
            environment = {**os.environ, "ROBUSTFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": asked}
            done = subprocess.run([*line, "hydra/launcher=local"], cwd=tmp_path, env=environment, capture_output=True)
            assert done.returncode == 0, done.stderr
            results = tmp_path.glob(f"runs/sweeps/jobs{jobs}{asked}/*/results.json")
            found[asked, jobs] = [json.loads(path.read_text())["config"]["threads"] for path in results]
    monkeypatch.setattr(threads, "ASKED", "")
    recipe = composed().model.recipe.threads
    assert found["", 1] == found["", 2] == [threads.choose(recipe)] * 2
    assert found["1", 1] == found["1", 2] == [1, 1]


@pytest.mark.parametrize(
    ("typed", "gpu", "expected"),
    [
        (("trainer.devices=2",), False, 2),
        (("trainer.devices='2'",), False, 2),
        (("trainer.devices=2",), True, 1),
        (("trainer.accelerator=cpu", "trainer.devices=2"), True, 2),
        (("trainer.devices=auto",), False, 1),
    ],
)
def test_processes_that_share_a_cpu(monkeypatch, typed, gpu, expected):
    """Also where nobody typed that they do: on a machine without a GPU."""
    monkeypatch.setattr("robustft.common.machine.has_accelerator", lambda: gpu)
    assert _processes_here(composed("trainer.accelerator=auto", *typed)) == expected
