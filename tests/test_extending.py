"""docs/extending.md: what stands there is run, as somebody would who has robustft and that page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robustft
from tests.small import ROOT, assert_refused

PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
LIMITS = """model.pretrained=null data.train_images=64 data.holdout=16 data.test_images=16 data.batch_size=16
    trainer=cpu trainer.enable_progress_bar=false logger=none""".split()
SHORT = (*LIMITS, "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files."""
    folder = tmp_path_factory.mktemp("mine")
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 12
    for name, text in blocks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return plain(folder, "--config-dir", "conf", *arguments)


def plain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without the folder of configs."""
    line = [sys.executable, "-m", "robustft", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ROBUSTFT_CACHE": str(folder / "cache"), "PATH": ""}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def done(folder: Path, name: str, *arguments: str) -> dict:
    answer = command(folder, f"hydra.run.dir={name}", *arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads((folder / name / "results.json").read_text())


@pytest.mark.slow
def test_a_method(own: Path):
    """Trained, swept, resumed after a kill, reported with its own label."""
    record = done(own, "one", "method=cosine", *SHORT)
    assert record["method"] == "cosine" and record["settings"] == {"method.weight": 1.0, "method.decay": 0.5}
    assert record["display"] == {
        "label": "cosine distillation",
        "marker": {"colour": "#332288", "shape": "<"},
        "dial": "method.weight",
        "order": 75,
    }
    state = torch.load(own / "one" / "last.ckpt", weights_only=True)["state_dict"]
    assert float(state["scale"]) != 0  # it was trained, besides the student
    final = robustft.load(own / "one").state_dict()
    moved = [not torch.equal(final[name], state[f"model.{name}"]) for name in ("head.weight", "visual.proj")]
    assert all(moved)  # what is saved is the average, not the student

    stop = """
import os, signal
from robustft.training.checkpoints import KeepState
after = KeepState.on_train_batch_end
def stopping(self, trainer, *rest):
    if trainer.global_step == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    after(self, trainer, *rest)
KeepState.on_train_batch_end = stopping
"""
    (own / "sitecustomize.py").write_text(stop)
    line = [sys.executable, "-m", "robustft", "--config-dir", "conf", "method=cosine", *SHORT, "hydra.run.dir=two"]
    environment = {"PYTHONPATH": f"{own}:{ROOT}", "OMP_NUM_THREADS": "1", "ROBUSTFT_CACHE": str(own / "cache")}
    stopped = subprocess.run(line, cwd=own, env=environment, capture_output=True, text=True, timeout=300)
    (own / "sitecustomize.py").unlink()
    assert stopped.returncode == 130 and "interrupted after step 4" in stopped.stderr, stopped.stderr
    answer = command(own, "resume=two")  # finds the folder of configs by itself
    assert answer.returncode == 0, answer.stderr
    again = robustft.load(own / "two").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in final.items())

    sweep = command(own, "-m", "method=cosine", "method.weight=0,3", *SHORT, "sweep=weights")
    assert sweep.returncode == 0, sweep.stderr
    report = plain(own, "report", "runs/sweeps/weights", "--html", "page.html", "--out", "report")
    assert report.returncode == 0 and "cosine distillation, weight=3" in report.stdout, report.stdout + report.stderr
    assert "over weight" in (own / "report" / "scatter.svg").read_text()
    assert '"dial":"method.weight"' in (own / "page.html").read_text("utf-8")

    assert_refused(command(own, "method=cosine", "method.weight=-1"), "method.weight=-1: expected a number, 0 or more")
    assert_refused(command(own, "method=cosine", "mask=object"), "method=cosine takes no mask or fill")


@pytest.mark.slow
def test_what_a_component_lacks_is_told_before_time_is_spent(own: Path):
    (own / "half.py").write_text(
        "from robustft.training.method import Method\n"
        "from robustft.evaluation.metrics import SetMetric\n"
        "class Stepless(Method): pass\n"
        "class Blind(SetMetric):\n    def compute(self): return 0.0\n"
    )
    (own / "conf" / "method" / "stepless.yaml").write_text(
        "name: stepless\n_target_: half.Stepless\ntakes: {trains: true, masks: false, settings: {}}\n"
    )
    (own / "conf" / "metric" / "blind.yaml").write_text("blind:\n  _target_: half.Blind\n")
    assert_refused(command(own, "method=stepless", *SHORT), "half.Stepless: it lacks training_step()")
    assert_refused(command(own, "metric=blind", *SHORT), "metric.blind._target_=half.Blind: it lacks update()")


@pytest.mark.slow
def test_a_method_that_does_not_train(own: Path):
    if not (own / "one" / "results.json").exists():
        done(own, "one", "method=cosine", *SHORT)
    untrained = [s for s in LIMITS if not s.startswith("data.batch_size")]
    done(own, "half", "method=halfway", "checkpoint=one", *untrained)
    half, tuned = (robustft.load(own / name).head.weight for name in ("half", "one"))
    start = robustft.load(done_zeroshot(own)).head.weight
    assert torch.equal(half, ((tuned.double() + start.double()) / 2).float())


def done_zeroshot(own: Path) -> Path:
    if not (own / "zero" / "results.json").exists():
        done(own, "zero", "method=zeroshot", *[s for s in LIMITS if not s.startswith("data.batch_size")])
    return own / "zero"


@pytest.mark.slow
def test_a_constraint(own: Path):
    record = done(
        own,
        "held",
        "method=finetune",
        "constraint=ball",
        "constraint.head=false",
        "constraint.ball.radius=0.02",
        *SHORT,
    )
    assert record["display"]["label"] == "vanilla fine-tuning, in a ball"
    assert record["settings"]["constraint.ball.radius"] == 0.02
    start, end = robustft.load(done_zeroshot(own)).state_dict(), robustft.load(own / "held").state_dict()
    moves = {name: float((end[name] - start[name]).norm()) for name in start}
    head = moves.pop("head.weight"), moves.pop("head.bias")
    assert max(moves.values()) == pytest.approx(0.02, rel=1e-3) and max(head) > 0.02
    done(own, "both", "constraint=[ball]", *SHORT)  # with the paper's method, too
    assert_refused(command(own, "method=wiseft", "checkpoint=held", "constraint=ball"), "constraint=ball does nothing")


@pytest.mark.slow
def test_a_metric(own: Path):
    record = done(own, "measured", "method=finetune", "metric=[ece,confidence]", *SHORT)
    assert record["metrics"]["confidence"] == {"label": "confidence", "unit": "%", "higher_is_better": None}
    for block in (record, record["zeroshot"]):
        assert set(block["id"]) == {"name", "top1", "n", "ece", "confidence"} and 0 < block["id"]["confidence"] < 1
    report = plain(own, "report", "measured", "--metric", "confidence", "--out", "measures")
    assert report.returncode == 0 and "OOD confidence, %" in report.stdout, report.stdout + report.stderr
    assert (own / "measures" / "scatter_confidence.png").exists()
    assert_refused(plain(own, "report", "measured", "--metric", "nll"), "--metric nll: no run has it. There are")


@pytest.mark.slow
def test_a_backbone(own: Path):
    record = done(own, "net", "model=net", "method=finetune", *LIMITS[1:], "trainer.max_epochs=2")
    assert record["model"] == "net" and record["zeroshot"] is None and record["protocol"]["head"] == "random"
    done(
        own, "net2", "model=net", "method=evaluate", "checkpoint=net", *[s for s in LIMITS[1:] if "batch_size" not in s]
    )
    refused = command(own, "model=net", *LIMITS[1:], "trainer.max_epochs=2")
    assert_refused(refused, "net (Net) has no patches, which masks are made of. It can do: mask=none")
    assert_refused(command(own, "model=net", "method=zeroshot"), "no text tower")


@pytest.mark.slow
def test_a_data_set(own: Path):
    typed = ("data=squares", "model.pretrained=null", *LIMITS[4:], "trainer.max_epochs=3")
    record = done(own, "squares_run", *typed)
    assert record["id"]["name"] == "squares" and list(record["ood"]) == ["small"] and record["id"]["n"] == 90
    assert_refused(command(own, "data=squares", "data.images=3"), "data.images=3: expected a whole number, 30 or more")
    checked = command(own, "check", "data=squares", "model.pretrained=null")
    assert checked.returncode == 0 and "Everything is there and readable" in checked.stdout
    assert_refused(command(own, "data=squares"), "The tokenizer does not know 'square'")
    assert_refused(command(own, "report", "squares_run"), "report takes no configs")
