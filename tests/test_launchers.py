"""Sweeps as jobs: submitit's local executor for real, and the script that SLURM would get."""

import os
import subprocess
import sys

import pytest

from robustft.cli.sources import CONF

ROOT = CONF.parent
STAND_IN = """
import json, os, pathlib, sys, types

def run(cfg):
    from robustft.common import configs
    results = {"schema": 1, "config": configs.plain(cfg), "process": os.getpid()}
    (pathlib.Path(cfg.run_dir) / "results.json").write_text(json.dumps(results))
    return results

module = types.ModuleType("robustft.experiment")
module.run = run
sys.modules["robustft.experiment"] = module
"""


def test_slurm_gets_what_the_config_says(tmp_path):
    for name, text in {"srun": "exit 0", "sbatch": f"cp $1 {tmp_path}/job.sh; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    settings = "-m beta=1,3 hydra/launcher=slurm hydra.launcher.partition=gpu hydra.launcher.timeout_min=90".split()
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(ROOT / "run.py"), *settings]
    subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    script = (tmp_path / "job.sh").read_text()
    options = "array=0-1%2 partition=gpu time=90 gpus-per-node=1 cpus-per-task=8 mem=64GB ntasks-per-node=1 nodes=1"
    for option in options.split():
        assert f"#SBATCH --{option}\n" in script, script
    assert f"{sys.executable} -u -m submitit.core._submit {tmp_path}/runs/sweeps/beta/.submitit/" in script


@pytest.mark.slow
def test_jobs_in_their_own_processes_agree_on_folders(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    line = [sys.executable, str(ROOT / "run.py"), "-m", "beta=1,3", "hydra/launcher=submitit_local"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = {path.parent.name for path in tmp_path.glob("runs/sweeps/beta/*/results.json")}
    assert found == {"beta-1", "beta-3"}
