"""The number of threads: measured for the model, recorded, and taken again by whoever goes on with the run."""

import json
import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from robustft import experiment
from robustft.cli import checks, identity
from robustft.cli.main import _processes_here, run_in
from robustft.cli.plan import make_plan
from robustft.common import configs, threads
from robustft.common.errors import UserError
from robustft.training.checkpoints import read_position
from tests.small import ROOT, composed, do, small, work  # noqa: F401
from tests.test_launchers import STAND_IN


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


@pytest.mark.parametrize(
    "start",
    [
        "from robustft.common.entry import answer; answer(lambda: None)",
        "import sys; sys.argv = ['robustft', '--version']; from robustft.cli.main import main; main()",
    ],
)
def test_threads_of_every_command_sleep_where_others_compute_too(start):
    """`robustft example` took 20 times as long beside two other processes on two cores."""
    code = f"{start}; import os, sys; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {key: value for key, value in os.environ.items() if "OMP" not in key}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.stdout.split()[-1:] == [threads.SPINS], said.stderr


@pytest.mark.slow
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


@pytest.mark.parametrize(("asked", "expected"), [(None, 3), ("5", 5)])
def test_workers_of_a_sweep_take_what_the_user_asked_for(tmp_path, asked, expected):
    """joblib sets OMP_NUM_THREADS in its processes by how many there are: that is nobody's wish."""
    (tmp_path / "stand_in").mkdir()
    more_cores = "import loky; loky.cpu_count = lambda only_physical_cores=False: 3\n"
    (tmp_path / "stand_in" / "sitecustomize.py").write_text(more_cores + STAND_IN)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "stand_in"), str(ROOT)])
    if asked:
        environment["OMP_NUM_THREADS"] = asked
    sweep = ["-m", "seed=1,2", "hydra/launcher=local", "model.recipe.threads=8", "sweep=mine"]
    line = [sys.executable, str(ROOT / "run.py"), *small(*sweep)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/sweeps/mine/*/results.json")]
    assert [record["config"]["threads"] for record in records] == [expected, expected]
    assert os.getpid() not in {record["process"] for record in records}


@pytest.mark.parametrize(("launcher", "carried"), [("basic", True), ("local", True), ("slurm", False)])
def test_a_job_of_a_cluster_takes_what_its_script_says(monkeypatch, tmp_path, launcher, carried):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/srun")
    plan = make_plan(["-m", "seed=1,2", f"hydra/launcher={launcher}"])
    assert any(threads.CARRIED in argument for argument in plan.arguments) == carried


@pytest.mark.parametrize(
    ("typed", "gpu", "expected"),
    [
        (("trainer.devices=2",), False, 2),
        (("trainer.devices='2'",), False, 2),
        (("trainer.devices=2",), True, 1),  # they compute elsewhere
        (("trainer.accelerator=cpu", "trainer.devices=2"), True, 2),
        (("trainer.accelerator=cpu", "trainer.devices='2'"), True, 2),
        (("trainer.accelerator=gpu", "trainer.devices=[0,1]"), True, 1),
        (("trainer.devices=auto",), False, 1),
    ],
)
def test_processes_that_share_a_cpu(monkeypatch, typed, gpu, expected):
    """Also where nobody typed that they do: on a machine without a GPU."""
    monkeypatch.setattr("robustft.common.machine.has_accelerator", lambda: gpu)
    assert _processes_here(composed("trainer.accelerator=auto", *typed)) == expected


def test_devices_as_they_are_typed():
    typed = {"2": 2, "'2'": 2, "'0,'": 1, "'0,1'": 2, "[0,3]": 2, "auto": None, "-1": None, "'-1'": None}
    found = {text: configs.device_count(composed(f"trainer.devices={text}").trainer.devices) for text in typed}
    assert found == typed
    with pytest.raises(UserError, match="cannot be split over 2 device"):
        checks.check(composed("trainer.devices='2'", "data.batch_size=1"))
