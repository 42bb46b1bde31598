"""Runs of seconds: the tiny model with random weights on a few scenes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import open_dict

from robustft.cli import checks, compose, identity
from robustft.cli.main import run_in
from robustft.cli.sources import CONF
from robustft.common import configs
from robustft.components import component, make_data
from robustft.experiment import make_training, options
from robustft.inputs import Inputs
from robustft.models.classifier import Classifier
from robustft.training.loop import train
from robustft.training.method import Method
from robustft.training.trainer import make_trainer

ROOT = CONF.parent
SMALL = """model=tiny model.pretrained=null data=scenes data.train_images=64 data.holdout=16 data.test_images=16
    data.batch_size=16 data.eval_batch_size=8 trainer=cpu trainer.max_epochs=2 trainer.log_every_n_steps=1
    data.sets.scenes_v2=false data.sets.scenes_r=false data.sets.scenes_sketch=false
    trainer.enable_progress_bar=false logger=none""".split()  # 3 steps an epoch


OF_TRAINING = ("data.batch_size=", "trainer.max_epochs=", "trainer.log_every_n_steps=")  # refused where nothing trains
UNTRAINED = [setting for setting in SMALL if not setting.startswith(OF_TRAINING)]


def small(*arguments: str) -> list[str]:
    """The arguments behind those of SMALL that mean something to their method."""
    trains = not {"method=zeroshot", "method=evaluate", "method=soup", "method=wiseft"} & set(arguments)
    return [*(SMALL if trains else UNTRAINED), *arguments]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory):
    """A folder for the runs of a module, with a cache of their own."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTFT_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        yield folder


def composed(*settings: str):
    cfg = compose.compose_first(compose.parse([*SMALL, *settings]))
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def prepared(folder: Path, *settings: str) -> Inputs:
    """A run as it stands before its method is made."""
    cfg = composed(*settings)
    checks.check(cfg)
    identity.resolve(cfg)
    with open_dict(cfg):
        cfg.run_dir, cfg.run_name, cfg.resume = str(folder), folder.name, None
    torch.manual_seed(0)
    return Inputs(cfg, make_data(cfg), make_trainer(options(cfg), folder).strategy.root_device)


def method_of(run: Inputs) -> Any:
    """The run's method, or the model that it gives."""
    return component("method", configs.plain(run.cfg)["method"], run)()


def trained(run: Inputs, watch: Any = None) -> Classifier:
    """The model that the run's training leaves.

    Args:
        watch: see ``Training``.
    """
    method = method_of(run)
    assert isinstance(method, Method)
    training = make_training(run.cfg, run, [])
    return train(method, training if watch is None else replace(training, watch=watch)).model


def do(folder: Path, *settings: str, resume: bool = False) -> dict[str, Any]:
    """One run in this process; the content of its results.json."""
    typed = [*settings, *(["resume=auto"] if resume else [])]
    run_in(composed(*typed), folder, typed)
    return json.loads((folder / "results.json").read_text())


def command(folder: Path, *arguments: str, stand_in: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """``python run.py`` with small settings, in ``folder``; ``stand_in`` is executed when Python starts."""
    paths = [str(ROOT)]
    if stand_in:
        (folder / "stand_in").mkdir(exist_ok=True)
        (folder / "stand_in" / "sitecustomize.py").write_text(stand_in)
        paths.insert(0, str(folder / "stand_in"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    line = [sys.executable, str(ROOT / "run.py"), *small(*arguments)]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


def assert_refused(answer: subprocess.CompletedProcess[str], *expected: str) -> None:
    """One short message, no traceback, a status that says so."""
    assert answer.returncode != 0, answer.stdout
    said = answer.stdout + answer.stderr
    assert "Traceback" not in said and answer.stderr.count("error:") == 1, said
    message = answer.stderr[answer.stderr.index("error:") :].strip()
    assert "\n" not in message and len(message) < 600, message
    for part in expected:
        assert part in message, message
