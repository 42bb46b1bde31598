"""A run folder is one run's: typed again, wanted by two processes at once, on a disk that is full."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import robustft
from robustft.cli import main as cli
from robustft.common import files
from robustft.common.errors import FolderTaken, UserError
from robustft.common.machine import missing_devices
from robustft.models.files import BEST
from robustft.training.checkpoints import LAST, SCORE, KeepState, read_position
from tests.small import ROOT, assert_refused, command, composed, do, small, work  # noqa: F401 (a fixture)
from tests.test_cli import STAND_IN

# Python imports sitecustomize at its start: the command waits in the second step of its optimiser.
WAITS = """
import os, pathlib, time, torch
original, count = torch.optim.AdamW.step, 0

def step(self, closure=None):
    global count
    count += 1
    if count == 2:
        pathlib.Path("waiting").touch()
        while not os.path.exists("go"):
            time.sleep(0.05)
    return original(self, closure)

torch.optim.AdamW.step = step
"""


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Times and contents of everything in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command in a process of its own; returns once it waits within its training."""
    (folder / "stand_in").mkdir(parents=True, exist_ok=True)
    (folder / "stand_in" / "sitecustomize.py").write_text(WAITS)
    paths = os.pathsep.join([str(folder / "stand_in"), str(ROOT)])
    line = [sys.executable, str(ROOT / "run.py"), *small(*arguments)]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, cwd=folder, env=environment, **pipes)  # type: ignore[call-overload]
    end = time.monotonic() + 200
    while not (folder / "waiting").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    return process


@pytest.fixture
def refused(monkeypatch, capsys):
    """What the command says that is refused before Hydra starts, in this process."""

    def refuse(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["run.py", *small(*arguments)])
        assert cli.main() == 1
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 500, said
        return said.err

    return refuse


# One folder, typed again


@pytest.mark.slow
def test_a_folder_with_a_run_is_refused(work, monkeypatch, refused):  # noqa: F811
    monkeypatch.chdir(work)
    first = do(Path("mine"), "method=finetune", "trainer.max_steps=2")
    assert first["holdout"]["n"] == 16
    before = snapshot(Path("mine"))
    again = (
        ("method=finetune", "trainer.max_steps=2"),
        ("trainer.accelerator=gpu",),
        ("check=data",),
        ("prepare=true",),
        ("method=evaluate", "checkpoint=mine"),
        ("resume=auto",),
    )
    for settings in again:
        said = refused("hydra.run.dir=mine", *settings)
        assert "mine holds a finished run (finetune, " in said and "another folder" in said and "overwrite=true" in said
    for settings in again[2:4]:
        assert "nothing is run" in refused("hydra.run.dir=mine", "overwrite=true", *settings)
    for name, value in {
        "checkpoint": "mine",
        "init": "mine/model.safetensors",
        "teacher": "../" + work.name + "/mine",
    }.items():
        method = ("method=evaluate",) if name == "checkpoint" else ()
        said = refused("hydra.run.dir=mine", "overwrite=true", f"{name}={value}", *method)
        assert "lies in mine" in said and name in said
    said = refused("hydra.run.dir=mine", "overwrite=true", "method=soup", "checkpoints='m*/model.safetensors'")
    assert "checkpoints=mine/model.safetensors lies in mine" in said
    assert "for single runs" in refused("-m", "seed=1,2", "overwrite=true")
    assert snapshot(Path("mine")) == before
    with pytest.raises(FolderTaken, match="holds a finished run"):  # whoever comes between the check and the start
        do(Path("mine"), "method=finetune")
    assert snapshot(Path("mine")) == before


def test_files_of_something_else_are_not_overwritten(work, monkeypatch, refused):  # noqa: F811
    monkeypatch.chdir(work)
    for name in ("config.yaml", "metrics.csv", "model.safetensors", "best.safetensors", "predictions.csv.gz"):
        folder = Path(f"other-{name}")
        folder.mkdir()
        (folder / name).write_text("theirs: 1\n")
        said = refused(f"hydra.run.dir={folder}")
        assert f"{folder} holds {name}: choose another folder" in said
        assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.slow
def test_an_interrupted_run_is_refused_and_a_failed_one_is_not(work, monkeypatch, refused):  # noqa: F811
    monkeypatch.chdir(work)
    stopped(monkeypatch, Path("stopped"))
    said = refused("hydra.run.dir=stopped")
    assert "stopped holds an interrupted run (finetune, " in said and "resume=stopped" in said
    assert "leave out overwrite" in refused("resume=stopped", "overwrite=true")
    with pytest.raises(UserError, match="limit_val_batches"):
        do(Path("failed"), "trainer.limit_val_batches=0.01")
    (Path("failed") / "error.txt").write_text("a mistake\n")
    assert do(Path("failed"), "method=finetune", "trainer.max_steps=1")["method"] == "finetune"
    assert not (Path("failed") / "error.txt").exists()


def stopped(monkeypatch: pytest.MonkeyPatch, folder: Path, *settings: str, after: int = 4) -> None:
    """A run that was asked to stop after the first evaluation, in this process."""

    def step(self, trainer, *rest):
        if trainer.global_step == after:
            self.received = signal.SIGTERM
        original(self, trainer, *rest)

    original = KeepState.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(KeepState, "on_train_batch_end", step)
        with pytest.raises(KeyboardInterrupt):
            do(folder, "method=finetune", *settings)


@pytest.mark.slow
def test_a_run_killed_before_its_first_state_starts_anew_in_its_folder(work, monkeypatch, refused):  # noqa: F811
    """The best weights are kept a moment before the state: nobody could go on from them."""
    folder, settings = work / "without-a-state", ("method=finetune", "trainer.max_epochs=1", "logger=csv")

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(KeepState, "_save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            do(folder, *settings)
    assert (folder / BEST).exists() and not (folder / LAST).exists()
    with pytest.raises(FolderTaken, match=f"holds {BEST}"):  # another run's
        do(folder, *settings, "seed=3")
    (folder / ".new").mkdir()  # settings of a run that was to take its place, and was killed too
    (folder / ".new" / "config.yaml").write_text("seed: 99\n")
    do(folder, *settings)
    assert OmegaConf.load(folder / "config.yaml").seed == 0 and not (folder / ".new").exists()
    steps = [line.split(",")[-1] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert len(steps) == 1 + 3 + 2  # the head, the steps, the hold-out's and the final scores: of one start


@pytest.mark.slow
def test_overwriting_begins_when_the_new_run_is_sure_to_start(tmp_path):
    environment = {"ROBUSTFT_CACHE": str(tmp_path / "cache")}
    line = ("hydra.run.dir=mine", "method=finetune", "trainer.max_steps=2")
    assert command(tmp_path, *line, **environment).returncode == 0
    before = snapshot(tmp_path / "mine")
    before.pop("run.log")
    assert_refused(
        command(tmp_path, *line, "overwrite=true", "trainer.limit_val_batches=0.01", **environment),
        "trainer.limit_val_batches=0.01",
    )
    after = snapshot(tmp_path / "mine")
    after.pop("run.log")
    assert after == before
    done = command(tmp_path, *line, "overwrite=true", "seed=5", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "mine/results.json").read_text())["config"]["seed"] == 5
    assert "seed: 5" in (tmp_path / "mine/config.yaml").read_text()
    assert "overwrite" not in (tmp_path / "mine/overrides.yaml").read_text()
    assert not (tmp_path / "mine/.new").exists()


# Two processes at once


@pytest.mark.slow
def test_one_folder_twice(work, monkeypatch, refused):  # noqa: F811
    """Refused while its owner lives, resumed when it has been killed: the same result as undisturbed."""
    folder = work / "twice"
    settings = ("method=finetune", "save_minutes=0", "hydra.run.dir=mine")
    first = start(folder, *settings)
    monkeypatch.chdir(folder)
    for again in (
        settings,
        ("resume=mine",),
        ("resume=mine/last.ckpt",),
        (*settings, "resume=auto"),
        (*settings, "check=data"),
    ):
        said = refused(*again)
        assert f"mine is being worked on by process {first.pid} on " in said and " since 20" in said
    assert "being worked on" in refused(*settings, "overwrite=true")
    assert not (folder / "mine" / "error.txt").exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    (folder / "go").touch()
    assert "holds an interrupted run" in refused(*settings)
    finished = command(folder, "resume=mine/last.ckpt", **{"ROBUSTFT_CACHE": os.environ["ROBUSTFT_CACHE"]})
    assert finished.returncode == 0, finished.stderr
    alone = do(work / "alone", "method=finetune", "save_minutes=0")
    result = json.loads((folder / "mine/results.json").read_text())
    assert all(result[key] == alone[key] for key in ("id", "ood", "holdout"))


@pytest.mark.slow
def test_one_sweep_in_two_terminals(work):  # noqa: F811
    """They share the work; who leaves a run to the other says so; the numbers are those of each run alone."""
    folder = work / "terminals"
    line = ("-m", "seed=1,2", "method=finetune", "sweep=shared")
    first = start(folder, *line)  # in its run of seed 1
    second = command(folder, *line)
    assert second.returncode == 1 and "Traceback" not in second.stderr + second.stdout
    assert f"seed-1: runs/sweeps/shared/seed-1 is being worked on by process {first.pid}" in second.stderr
    runs = folder / "runs/sweeps/shared"
    assert (runs / "seed-2/results.json").exists() and not (runs / "seed-1/results.json").exists()
    (folder / "go").touch()
    said, errors = first.communicate(timeout=200)
    assert first.returncode == 0 and "seed-2: finished before, skipped" in said, errors
    assert not list(runs.glob("**/error.txt")) and not list(runs.glob(".notes*"))
    for seed in (1, 2):
        alone = do(work / f"alone-{seed}", "method=finetune", f"seed={seed}")
        result = json.loads((runs / f"seed-{seed}/results.json").read_text())
        assert all(result[key] == alone[key] for key in ("id", "ood", "holdout", "zeroshot"))


@pytest.mark.slow
def test_a_refused_sweep_leaves_finished_folders_as_they_were(tmp_path):
    def sweep(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return command(tmp_path, *arguments, stand_in=STAND_IN)

    line = ("-m", "seed=1,2", "method=finetune", "trainer.max_steps=1", "sweep=mine")
    assert sweep(*line).returncode == 0
    before = snapshot(tmp_path / "runs")
    refused = sweep(*line, "optimizer.lr=1e-4")
    assert_refused(refused, "optimizer.lr=0.0001 (there: 0.0005)", "sweep=")
    assert snapshot(tmp_path / "runs") == before
    again = sweep(*line)
    assert again.returncode == 0 and again.stdout.count("finished before, skipped") == 2
    # A run that is refused in the middle of a sweep, and one whose settings cannot work any more.
    other = sweep("-m", "seed=3,1", *line[2:], "optimizer.lr=1e-4")
    broken = sweep(*line, "trainer.limit_val_batches=-1")
    assert other.returncode == broken.returncode == 1
    assert "1 of the runs" in other.stderr and "seed-1: the finished run in" in other.stderr
    assert "limit_val_batches=-1: expected" in broken.stderr
    after = snapshot(tmp_path / "runs")
    for name, content in before.items():
        assert "multirun" in name or after[name] == content, name
    assert {name.split("/")[2] for name in set(after) - set(before)} == {"seed-3"}


# Going on with what was interrupted


def rescored(path: Path, score: str) -> None:
    """Write another score of the hold-out into the file of the best weights."""
    with safe_open(path, "pt") as file:
        told = {**file.metadata(), SCORE: score}
    save_file(load_file(path), path, told)


@pytest.mark.slow
def test_the_best_model_so_far_has_to_be_there(work, monkeypatch):  # noqa: F811
    folder, other = work / "complete", work / "other"
    stopped(monkeypatch, folder)
    stopped(monkeypatch, other, "seed=3")
    cases = {
        "missing": (lambda copy: (copy / BEST).unlink(), "best.safetensors is missing: the best model up to step 3"),
        "another": (lambda copy: shutil.copy(other / BEST, copy), "is not the best model of the run"),
        "no number": (lambda copy: rescored(copy / BEST, "{}"), "is not the best model of the run"),
        "damaged": (lambda copy: (copy / BEST).write_bytes(b"half"), "best.safetensors cannot be read"),
    }
    for name, (change, expected) in cases.items():
        copy = shutil.copytree(folder, work / f"copy-{name}")
        change(copy)
        with pytest.raises(UserError, match=expected):
            do(copy, "method=finetune", resume=True)
        assert (copy / LAST).exists()
    earlier = shutil.copytree(folder, work / "copy-earlier")  # a state from before it told of the best model
    state = torch.load(earlier / LAST, weights_only=True)
    for key in ("score", "run"):
        del state["callbacks"]["KeepBest"][key]
    torch.save(state, earlier / LAST)
    (earlier / BEST).unlink()
    with pytest.raises(UserError, match="is missing: the best model up to step 3"):
        do(earlier, "method=finetune", resume=True)
    alone = do(work / "undisturbed", "method=finetune")
    result = do(folder, "method=finetune", resume=True)
    assert all(result[key] == alone[key] for key in ("id", "ood", "holdout"))


@pytest.mark.slow
def test_an_interrupted_runs_best_model_is_evaluated_and_loaded(work, monkeypatch, caplog):  # noqa: F811
    folder = work / "unfinished"
    stopped(monkeypatch, folder)
    model = robustft.load(folder)
    assert "best model so far of a run that was interrupted: that of step 3" in caplog.text
    assert model(torch.zeros(1, 3, model.preprocess.size, model.preprocess.size)).shape == (1, 16)
    evaluated = do(work / "evaluated", "method=evaluate", f"checkpoint={folder}")
    found = files_metadata(folder / BEST)
    assert evaluated["holdout"]["top1"] == pytest.approx(float(found["holdout/top1"]))
    from safetensors.torch import load_file, save_file

    save_file(load_file(folder / BEST), folder / BEST, {"holdout/top1": "0.5"})  # as earlier versions left it
    with pytest.raises(UserError, match=f"Go on with that run first: resume={folder}"):
        robustft.load(folder)


def files_metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


# A disk that is full


@pytest.mark.slow
@pytest.mark.parametrize("name", [BEST, LAST, "predictions.csv.gz", "results.json", "metrics.csv"])
def test_a_full_disk_is_one_line_and_the_run_goes_on(work, monkeypatch, name):  # noqa: F811
    """What was kept before is whole, and once there is room the run ends as if nothing had been."""
    folder, replace = work / f"full-{name}", os.replace
    settings = ("method=finetune", "logger=csv")

    def no_room(path: Path) -> None:
        if path.name == name and (name == BEST or (folder / LAST).exists()):  # the first one, or that of the 2nd epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda source, path: (no_room(Path(path)), replace(source, path)))
        patch.setattr(ExperimentWriter, "save", lambda self: no_room(Path("metrics.csv")))
        with pytest.raises(UserError) as refused:
            do(folder, *settings)
    said = str(refused.value)
    assert "No space left on device (" in said and "MB are free" in said and "\n" not in said
    assert not list(folder.glob("*.partial")) and not (folder / "results.json").exists()
    if name == BEST:  # the very first thing that is kept
        assert "nothing was kept yet" in said and not (folder / LAST).exists()
        return
    assert f"make room, then go on with python run.py resume={folder}" in said
    result = do(folder, *settings, resume=True)
    if not (work / "roomy").exists():
        do(work / "roomy", *settings)
    roomy = json.loads((work / "roomy/results.json").read_text())
    assert all(result[key] == roomy[key] for key in ("id", "ood", "holdout"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_small_disk(tmp_path):
    """A disk for real: room for one state, not for a second beside it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a disk here")
    try:
        environment = {"ROBUSTFT_CACHE": str(tmp_path / "cache")}
        settings = ("method=finetune", "logger=csv", f"hydra.run.dir={disk}/mine")
        end = command(tmp_path, *settings, **environment)
        assert_refused(end, f"cannot write {disk}/mine/last.ckpt: No space left on device (", "resume=disk/mine")
        assert end.stderr.count("\n") == 1
        left = {path.name for path in (disk / "mine").iterdir()}
        assert {LAST, BEST} < left and not [name for name in left if name.endswith(".partial")]
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        again = command(tmp_path, f"resume={disk}/mine", **environment)
        assert again.returncode == 0 and (disk / "mine/results.json").exists(), again.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_counts_as_an_error_of_the_disk(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        with pytest.raises(files.WriteError, match=os.strerror(number)), files.atomic(tmp_path / "a"):
            raise OSError(number, os.strerror(number))
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "a"):
        (tmp_path / "no").read_text()
    assert files.disk_error(ValueError("no")) is None and not list(tmp_path.iterdir())


def test_a_model_to_be_read_is_not_overwritten_whatever_names_the_folder(work):  # noqa: F811
    """A reference in hydra.run.dir is known only once the run starts: there it counts."""
    folder = work / "named_by_reference"
    do(folder, "method=finetune", "trainer.max_steps=1")
    before = snapshot(folder)
    with pytest.raises(FolderTaken, match="overwrite=true would clear"):
        do(folder, "method=evaluate", f"checkpoint={folder}", "overwrite=true")
    assert snapshot(folder) == before


def test_an_overwrite_that_is_stopped_in_time_leaves_the_old_run_its_id_and_its_state(work, monkeypatch):  # noqa: F811
    folder = work / "old"
    do(folder, "method=finetune", "trainer.max_steps=1", "logger=wandb")
    (folder / "results.json").unlink()  # interrupted
    before = snapshot(folder)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("robustft.experiment.zeroshot_scores", stop)
    with pytest.raises(KeyboardInterrupt, match="Nothing was kept yet to resume from"):
        do(folder, "method=finetune", "trainer.max_steps=2", "logger=wandb", "overwrite=true")
    assert {name: text for name, text in snapshot(folder).items() if name in before and "/" not in name} == {
        name: text for name, text in before.items() if "/" not in name
    }
    assert (folder / "wandb_id.txt").is_file() and (folder / LAST).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["overwritten", "failed"])
def test_what_wandb_keeps_of_a_run_goes_with_it(work, monkeypatch, how):  # noqa: F811
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = work / f"wandb-{how}"
    settings = ("method=finetune", "trainer.max_steps=1", "logger=wandb")
    if how == "failed":
        with pytest.raises(RuntimeError), monkeypatch.context() as patch:
            patch.setattr("robustft.experiment.finish", lambda *_, **__: (_ for _ in ()).throw(RuntimeError()))
            do(folder, *settings)
        wandb.finish()
        for state in (LAST, BEST):  # with which it could go on
            (folder / state).unlink(missing_ok=True)
    else:
        do(folder, *settings)
    others = folder / "wandb" / "offline-run-20200101_000000-another"  # not of a run of ours
    others.mkdir()
    before = (folder / "wandb_id.txt").read_text()
    assert [path.stem for path in folder.glob(f"wandb/*/run-{before}.wandb")]
    do(folder, *settings, "seed=3", *(["overwrite=true"] if how == "overwritten" else []))
    now = (folder / "wandb_id.txt").read_text()
    assert now != before and {path.stem for path in folder.glob("wandb/*/run-*.wandb")} == {f"run-{now}"}
    assert others.is_dir() and all(path.exists() for path in folder.glob("wandb/*"))
    do(folder, "method=finetune", "trainer.max_steps=1", "overwrite=true")
    assert not (folder / "wandb_id.txt").exists() and list(folder.glob("wandb/*")) == [others]


def test_an_earlier_versions_interrupted_run_is_refused(work, monkeypatch, refused):  # noqa: F811
    folder = work / "earlier"
    do(folder, "method=finetune", "trainer.max_steps=1")
    (folder / "results.json").unlink()
    config = folder / "config.yaml"
    saved = OmegaConf.load(config)
    del saved["schedule"]
    OmegaConf.save(saved, config)
    assert "started by an earlier version of robustft" in refused(f"resume={folder}")
    state = torch.load(folder / LAST, weights_only=True)
    del state["recipe"]
    torch.save(state, folder / LAST)
    with pytest.raises(UserError, match="was left by an earlier version of robustft.*remove it"):
        read_position(folder)


# Mistakes that are found before anything is done


@pytest.mark.slow
def test_a_run_that_is_refused_before_it_does_anything_leaves_no_folder(tmp_path):
    late = ("method=finetune", "trainer.limit_val_batches=0.01")  # known once the data is
    environment = {"ROBUSTFT_CACHE": str(tmp_path / "cache")}
    assert_refused(command(tmp_path, *late, **environment), "limit_val_batches=0.01")
    alone = ("method=flyp", "data.batch_size=1", "logger=none")  # the method itself says so
    assert_refused(command(tmp_path, *alone, **environment), "data.batch_size=1")
    (tmp_path / "kept").mkdir()
    assert_refused(command(tmp_path, *late, "hydra.run.dir=kept/new/run", **environment), "limit_val_batches=0.01")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "kept"} and not list((tmp_path / "kept").iterdir())
    (tmp_path / "mine").mkdir()  # is the user's
    assert_refused(command(tmp_path, *late, "hydra.run.dir=mine", **environment), "limit_val_batches=0.01")
    assert "limit_val_batches" in (tmp_path / "mine" / "error.txt").read_text()


def test_what_was_cut_off_or_is_not_there_is_said_at_once(work, monkeypatch, refused):  # noqa: F811
    monkeypatch.chdir(work)
    stopped(monkeypatch, Path("cut"))
    (Path("cut") / LAST).write_bytes((Path("cut") / LAST).read_bytes()[:5000])
    settings = ("method=finetune", "logger=none")
    for line in (("resume=cut",), (*settings, "hydra.run.dir=cut", "resume=auto")):
        said = refused(*line)
        assert "cut/last.ckpt cannot be read: it is damaged or cut off" in said
    Path("half.safetensors").write_bytes((Path("cut") / BEST).read_bytes()[:5000])
    for line in (
        ("init=half.safetensors",),
        ("teacher=half.safetensors",),
        ("method=evaluate", "checkpoint=half.safetensors"),
        ("method=soup", "checkpoints=half.safetensors"),
        ("model.pretrained=half.safetensors",),
    ):
        assert "half.safetensors: not a readable weights file" in refused(*line), line
    assert "more than the 48 training images" in refused("data.batch_size=64")
    assert "leaves nothing to train on" in refused("data.holdout=64")
    for accelerator in {"cuda", "mps"} - {getattr(torch.accelerator.current_accelerator(), "type", None)}:
        said = refused(f"trainer.accelerator={accelerator}")
        assert f"trainer.accelerator={accelerator} trainer.devices=1: PyTorch" in said and "no such device here" in said
    assert not Path("runs").exists()


def test_devices_beyond_those_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert missing_devices("gpu", 2) is None and missing_devices("cuda") is None
    assert missing_devices("cuda", 4) == "there are 2 of 4 such devices here"
