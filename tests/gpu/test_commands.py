"""Real commands on a GPU: the demo, resuming, the bench, two devices."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from robustft.bench import __main__ as bench
from tests.small import ROOT, command, do, work  # noqa: F401 (a fixture)
from tests.test_resume import go_on_until_done, stops  # noqa: F401 (a fixture)


def test_demo(tmp_path):
    """``make demo``, which takes the GPU by itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(tmp_path / "cache")}
    environment |= {"WANDB_MODE": "offline", "HYDRA_FULL_ERROR": "1"}
    line = [sys.executable, str(ROOT / "run.py"), "hydra.run.dir=demo", "logger=none"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 cuda device" in done.stdout + done.stderr or torch.cuda.device_count() > 1
    record = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert record["zeroshot"]["id"]["top1"] == pytest.approx(0.642, abs=0.005)  # the embedded model's, on any device
    assert record["id"]["top1"] > 0.78 and record["ood_avg"] > 0.70  # README: 82.3 and 72.5 on a CPU
    assert len(list((tmp_path / "demo" / "gallery").glob("*.png"))) == 6


GPU = ("trainer=gpu", "trainer.deterministic=true")


def test_resumed(work, stops, monkeypatch):  # noqa: F811
    """Stopped after every step: the weights of a run that was never interrupted, with deterministic kernels."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    seen, wanted = stops
    try:
        do(work / "whole", *GPU)
        points = list(dict.fromkeys(seen))
        go_on_until_done(work / "stopped", GPU, wanted, points)
    finally:
        torch.use_deterministic_algorithms(False)
    expected, found = (load_file(work / name / "model.safetensors") for name in ("whole", "stopped"))
    assert points and all(torch.equal(found[name], value) for name, value in expected.items())


def test_every_method_runs(work):  # noqa: F811
    gpu = ("trainer=gpu", "trainer.max_epochs=1")
    one = do(work / "one", *gpu, "disagreement=1", "trainer.precision=bf16-mixed")
    assert one["holdout"] and (work / "one" / "gallery").is_dir()
    model = work / "one" / "model.safetensors"
    for name, settings in {
        "text": ("method=zeroshot", "model.pretrained=embedded"),
        "kd": ("method=kd", "mask=context", "mask.cam=gradcam", "trainer.precision=16-mixed"),
        "maps": ("mask.source=teacher", "fill=multi"),
        "probe": ("method=linear_probe",),
        "lpft": ("method=lpft", "method.probe.epochs=1"),
        "wiseft": ("method=wiseft", f"checkpoint={model}"),
        "soup": ("method=soup", f"checkpoints=[{model}]", "method.greedy=true"),
        "evaluate": ("method=evaluate", f"checkpoint={model}"),
    }.items():
        assert do(work / name, *gpu, *settings)["id"]["n"] == 16, name


def test_bench(tmp_path, capsys):
    path = tmp_path / "bench.json"
    bench.main(["--model=vitb32", "--batch=16", "--rounds=3", "--device=cuda", f"--json={path}"])
    record = json.loads(path.read_text())
    assert record["machine"]["gpu"] == torch.cuda.get_device_name()
    assert all(value > 0 for values in record["variants"].values() for value in values.values())
    assert record["variants"]["exact_fp32"]["vs_direct"] > 1
    print(capsys.readouterr().out)  # the table, for `pytest -s`


def assert_same_scores(one: dict, two: dict, images: int) -> None:
    assert {name: score["n"] for name, score in two["ood"].items()} == dict.fromkeys(two["ood"], images)
    for name in one["ood"]:
        assert two["ood"][name]["top1"] == pytest.approx(one["ood"][name]["top1"], abs=2 / images)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices(tmp_path):
    shared = ("data.test_images=15", "data.eval_batch_size=4", "optimizer.lr=1e-4", "fill=none", "trainer=ddp")
    records, weights = [], []
    for devices in (1, 2):
        answer = command(
            tmp_path, *shared, f"trainer.devices={devices}", f"hydra.run.dir=d{devices}",
            ROBUSTFT_CACHE=str(tmp_path / f"cache{devices}"),
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr[-3000:]
        records.append(json.loads((tmp_path / f"d{devices}" / "results.json").read_text()))
        weights.append(load_file(tmp_path / f"d{devices}" / "model.safetensors"))
    assert_same_scores(*records, images=15)
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-4, name
