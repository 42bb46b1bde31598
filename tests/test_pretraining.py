"""Pre-training of the tiny CLIP: one curve, however often it is stopped."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustft.common.errors import UserError
from robustft.common.imports import script
from robustft.data.scenes.generate import generate
from robustft.data.scenes.recipes import PRETRAINING
from tests.small import ROOT

SCRIPT = ROOT / "experiments" / "pretrain_tiny" / "pretrain.py"
pretrain = script(SCRIPT)

SHORT = ["--steps=4", "--images=32", "--batch-size=8"]


@pytest.fixture(scope="module")
def scenes():
    return generate(PRETRAINING, 32, size=pretrain.SIZE, seed=2000, name="pretraining")


@pytest.fixture(autouse=True)
def rows_of_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "EVERY", 3)


def trained(scenes, *, stop: int | None = None, folder: Path | None = None, seed: int = 2000):
    """A short pre-training; stopped and gone on with after ``stop`` steps, in the middle of a row of the curve."""
    training = pretrain.Training(pretrain.parsed([*SHORT, f"--seed={seed}"]))
    while training.step < 4:
        if training.step == stop:
            training.save(folder / "state.pt")
            training = pretrain.Training(pretrain.parsed([*SHORT, f"--seed={seed}"]))
            training.load(folder / "state.pt")
            stop = None
        training.one_step(scenes)
    return training


def same(one, other) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return one.rows == other.rows and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_again_and_stopped_in_between_it_is_the_same(scenes, tmp_path):
    whole = trained(scenes)
    assert [row[0] for row in whole.rows] == [3, 4]
    torch.rand(3)  # nothing hangs on torch's own random numbers
    assert same(whole, trained(scenes))
    assert same(whole, trained(scenes, stop=2, folder=tmp_path))
    assert not same(whole, trained(scenes, seed=2001))


def test_a_state_of_other_settings_is_refused(scenes, tmp_path):
    pretrain.Training(pretrain.parsed(SHORT)).save(tmp_path / "state.pt")
    other = pretrain.Training(pretrain.parsed([*SHORT, "--seed=1"]))
    with pytest.raises(UserError, match=r"state\.pt is of a pre-training with .*2000"):
        other.load(tmp_path / "state.pt")


@pytest.mark.slow
def test_the_command_killed_and_repeated(tmp_path):
    def run(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        places = [f"--out={tmp_path / name}", f"--work={tmp_path / name / 'work'}", *SHORT, "--save-minutes=0"]
        return subprocess.run([sys.executable, str(SCRIPT), *places, *more], capture_output=True, text=True, cwd=ROOT)

    assert run("whole").returncode == 0
    first = run("parts", "--until=2")
    assert first.returncode == 0 and "repeat the command" in first.stdout
    assert not (tmp_path / "parts" / "tiny.safetensors").exists()
    assert "going on after 2 steps" in run("parts").stdout
    ours, theirs = (load_file(tmp_path / name / "tiny.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [list(csv.reader((tmp_path / name / "curve.csv").open())) for name in ("whole", "parts")]
    assert curves[0] == curves[1] and len(curves[0]) == 2
