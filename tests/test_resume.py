"""An interrupted run that goes on gives the weights of one that was never interrupted, bit for bit."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustft.common.errors import UserError
from robustft.models.files import BEST
from robustft.training.callbacks import Speed
from robustft.training.checkpoints import LAST, KeepState, read_position
from tests.small import ROOT, SMALL, command, do, work  # noqa: F401 (a fixture)

Point = tuple[str, int, int]  # where a run may be asked to stop: hook, micro-batches so far, evaluation batch

SCHEDULES = {
    "epochs": (),
    "max_steps": ("trainer.max_steps=5",),
    "accumulation": ("trainer.accumulate_grad_batches=2", "method=finetune"),
    "evaluation_inside_of_epochs": ("trainer.val_check_interval=2", "mask=none"),
    "an_epoch_without_evaluation": ("trainer.check_val_every_n_epoch=2", "mask=random", "fill=multi"),
    "workers": ("data.num_workers=2", "trainer.max_epochs=1", "method=finetune"),
}


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch):
    """All points at which runs could stop are noted in the first list; a run stops at those of the second."""
    seen: list[Point] = []
    wanted: list[Point] = []
    after_step, after_evaluation_batch = KeepState.on_train_batch_end, KeepState.on_validation_batch_end
    at_end = KeepState.on_train_end

    def visit(self, trainer, hook, index=0):
        if trainer.state.fn != "fit":
            return
        point = (hook, trainer.fit_loop.epoch_loop.batch_progress.total.ready, index)
        seen.append(point)
        if point in wanted:
            wanted.remove(point)
            self.received = signal.SIGTERM

    def train_batch_end(self, trainer, *rest):
        visit(self, trainer, "step")
        after_step(self, trainer, *rest)

    def validation_batch_end(self, trainer, module, outputs, batch, index, *rest):
        visit(self, trainer, "evaluation", index)
        after_evaluation_batch(self, trainer, module, outputs, batch, index, *rest)

    def train_end(self, trainer, *rest):
        visit(self, trainer, "end")  # after the last state was written
        at_end(self, trainer, *rest)

    monkeypatch.setattr(KeepState, "on_train_batch_end", train_batch_end)
    monkeypatch.setattr(KeepState, "on_validation_batch_end", validation_batch_end)
    monkeypatch.setattr(KeepState, "on_train_end", train_end)
    return seen, wanted


@pytest.mark.parametrize(
    "schedule", ["epochs", *(pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULES if name != "epochs")]
)
def test_stopped_at_every_point(work, stops, schedule):  # noqa: F811
    """One run that is stopped after every step and in every evaluation, each time resumed."""
    settings = SCHEDULES[schedule]
    seen, wanted = stops
    expected = do(work / schedule, *settings)
    points = list(dict.fromkeys(seen))
    folder = work / f"{schedule}-stopped"
    found = go_on_until_done(folder, settings, wanted, points)
    assert same_results(work / schedule, folder) and found == expected["holdout"]
    in_evaluations = [point for point in points if point[0] == "evaluation"][::2]
    if schedule in ("epochs", "evaluation_inside_of_epochs"):
        folder = work / f"{schedule}-evaluations"
        assert go_on_until_done(folder, settings, wanted, in_evaluations) == expected["holdout"]
        assert same_results(work / schedule, folder) and not wanted


def go_on_until_done(folder: Path, settings: tuple[str, ...], wanted: list[Point], points: list[Point]) -> dict:
    wanted[:] = points
    for attempt in range(len(points) + 1):
        try:
            return do(folder, *settings, resume=attempt > 0)["holdout"]
        except KeyboardInterrupt as stop:
            assert "interrupted after step" in str(stop) and f"resume={folder}" in str(stop)
            assert not (folder / "results.json").exists() and not list(folder.glob("*.partial"))
    raise AssertionError("more interruptions than points")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["epochs", "max_steps"])
def test_killed_after_every_save(work, monkeypatch, schedule):  # noqa: F811
    """The folder as it is after each save, moved somewhere else, goes on to the same end."""
    settings = (*SCHEDULES[schedule], "save_minutes=0", "seed=1", "logger=csv")
    folder, copies = work / f"{schedule}-saving", []
    save = KeepState._save

    def save_and_copy(self, trainer):
        save(self, trainer)
        if self.path.parent == folder:
            copies.append(work / f"{schedule}-killed-{len(copies)}")
            shutil.copytree(folder, copies[-1])

    monkeypatch.setattr(KeepState, "_save", save_and_copy)
    do(folder, *settings)
    assert len(copies) >= 5 and not (folder / BEST).exists()
    logged = list(rows(folder))
    for copy in copies[::-2]:  # the last one is trained to the end and has no results yet
        do(copy, *settings, resume=True)
        assert same_results(folder, copy)
        # Once each, but for the step of the save: it is logged only behind it.
        found = list(rows(copy))
        assert set(found) <= set(logged) and len(set(found)) == len(found) >= len(logged) - 1
    assert read_position(copies[-1]).step >= 5


def rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """What metrics.csv says of each step."""
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield row["step"], row["train/loss"], row["holdout/top1"]


def same_results(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    records = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert all(records[0][key] == records[1][key] for key in ("id", "ood", "holdout"))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


# The real command: the third step of the optimiser stops the run, or kills it.
AT_STEP = """
import os, torch
original, count = torch.optim.AdamW.step, 0

def step(self, closure=None):
    global count
    count += 1
    if count == int(os.environ["AT_STEP"]):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return original(self, closure)

torch.optim.AdamW.step = step
"""


@pytest.mark.slow
def test_the_command_is_terminated_killed_and_goes_on(tmp_path):
    settings = ["save_minutes=0", "logger=wandb"]
    environment = {"ROBUSTFT_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"}
    terminated = command(tmp_path, *settings, stand_in=AT_STEP, AT_STEP="3", SIGNAL="15", **environment)
    (folder,) = tmp_path.glob("runs/counterfactual_object_single_tiny/*")
    again = f"resume={folder.relative_to(tmp_path)}"
    assert terminated.returncode == 130, terminated.stderr
    assert f"interrupted after step 3 of 6. Resume with: python run.py {again}" in terminated.stderr
    assert "Traceback" not in terminated.stderr and not (folder / "results.json").exists()
    run_id = (folder / "wandb_id.txt").read_text()
    killed = command(
        tmp_path, "resume=auto", *settings, stand_in=AT_STEP, AT_STEP="3", SIGNAL="9", **environment
    )  # in step 6, after step 5 was saved
    assert killed.returncode == -9 and read_position(folder).step == 5, killed.stderr
    finished = command(tmp_path, "resume=auto", *settings, stand_in="", **environment)
    assert finished.returncode == 0 and "continuing" in finished.stdout, finished.stderr
    assert command(tmp_path, "hydra.run.dir=whole", **environment).returncode == 0
    assert same_results(tmp_path / "whole", folder)
    assert (folder / "wandb_id.txt").read_text() == run_id
    started = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(started) == 3 and {path.stem for path in started} == {f"run-{run_id}"}


def test_another_schedule_is_refused(work, stops):  # noqa: F811
    _, wanted = stops
    wanted.append(("step", 2, 0))
    with pytest.raises(KeyboardInterrupt):
        do(work / "schedule", "method=finetune")
    with pytest.raises(UserError, match="cannot be resumed with another schedule: steps was 6, now it is 9"):
        do(work / "schedule", "method=finetune", "trainer.max_epochs=3", resume=True)
    with pytest.raises(UserError, match="another schedule: lr was 0.0005, now it is 0.1"):
        do(work / "schedule", "method=finetune", "optimizer.lr=0.1", resume=True)
    (work / "schedule" / LAST).write_bytes((work / "schedule" / LAST).read_bytes()[:5000])
    with pytest.raises(UserError, match="last.ckpt cannot be read"):
        do(work / "schedule", "method=finetune", resume=True)


def test_the_command_refuses_another_schedule(work):  # noqa: F811
    folder = work / "refused"
    folder.mkdir()
    zipfile.ZipFile(folder / LAST, "w").close()
    saved = (ROOT / "conf").name  # a config that cannot be the run's
    (folder / "config.yaml").write_text(f"trainer: {{max_epochs: 7}}\nname: {saved}\nschedule: {{name: one_cycle}}\n")
    answer = command(folder.parent, "resume=refused", "trainer.max_epochs=3")
    assert answer.returncode == 1 and "has other settings" in answer.stderr and "Traceback" not in answer.stderr


def test_speed_is_that_of_all_sessions():
    before, after = (Speed(lambda: "", images_per_step=16, steps=9) for _ in range(2))
    before.timed_steps, before.seconds = 4, 2.0
    after.load_state_dict(before.state_dict())
    assert after.images_per_s == before.images_per_s == 32
    after.timed_steps, after.seconds = 4, 6.0
    assert after.images_per_s == 16  # 8 steps of 16 images in 8 s


def test_a_run_took_as_long_as_all_its_sessions(monkeypatch):
    clock = iter([30.0, 70.0, 75.0])
    monkeypatch.setattr("robustft.training.callbacks.time.perf_counter", lambda: next(clock))
    first, second, third = (Speed(lambda: "", images_per_step=1, steps=9, started=s) for s in (10.0, 50.0, 0.0))
    second.load_state_dict(first.state_dict())  # saved after 20 s
    third.load_state_dict(second.state_dict())  # saved 20 s later
    assert third.earlier_s == 40
    assert third.state_dict()["wall"] == 40 + 75


@pytest.mark.parametrize(
    "settings",
    [
        ("method=linear_probe",),
        ("method=lpft", "method.probe.epochs=1"),
        ("method=finetune",),
        ("method=kd", "mask=none"),
        ("mask=object", "fill=single", "mask.source=teacher"),
    ],
    ids=lambda settings: settings[0],
)
def test_every_method_reports_the_time_of_all_its_sessions(work, stops, settings):  # noqa: F811
    folder = work / ("took-" + settings[0].replace("=", "-"))
    if settings[0] == "method=lpft":  # the first stage is in the cache, so that the second is what is stopped
        do(work / "took-probing", *settings)
    stops[1].append(("step", 2, 0))
    with pytest.raises(KeyboardInterrupt):
        do(folder, *settings)
    state = torch.load(folder / LAST, weights_only=True)
    (speed,) = (values for name, values in state["callbacks"].items() if name.startswith("Speed"))
    assert speed["wall"] > 0
    speed["wall"], speed["steps"], speed["seconds"] = 5000.0, 100, 50.0
    torch.save(state, folder / LAST)
    record = do(folder, *settings, resume=True)
    assert 5000 < record["wall_s"] < 5000 + 600
    assert 16 <= record["train_images_per_s"] < 64  # 100 steps of 16 images in 50 s, and a few more


# The second process sees the folder when the first one is at work there.
LATE = """
import os, pathlib, time
end = time.monotonic() + 100
while os.environ.get("RANK") == "1" and not list(pathlib.Path().glob("*/.run.owner")) and time.monotonic() < end:
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_processes_that_torchrun_starts_go_on_in_one_folder(work, stops):  # noqa: F811
    folder = work / "together"
    settings = ("method=finetune", "trainer.max_epochs=1", "seed=9")
    stops[1].append(("step", 2, 0))
    with pytest.raises(KeyboardInterrupt):
        do(folder, *settings)
    (work / "late").mkdir()
    (work / "late" / "sitecustomize.py").write_text(LATE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(work / "late"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "run.py")]
    line += [*SMALL, *settings, "trainer.devices=2", "trainer.strategy=ddp", "resume=auto", "hydra.run.dir=together"]
    done = subprocess.run(line, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "on 2 cpu devices" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("continuing together") == 1 and (folder / "results.json").is_file()
