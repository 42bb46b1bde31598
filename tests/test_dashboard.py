"""What runs tell W&B, read back from their files, and the dashboard made of it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from robustft.cli.sources import CONF
from robustft.report import dashboard
from robustft.report.wandb_files import BLOCK, HEADER, LoggedRun, _records, read_logged

SETS = ["scenes_v2", "scenes_r", "scenes_sketch", "scenes_objectnet", "scenes_a"]
METRICS = ["per_class", "macro_f1", "worst_class", "ece", "ece_calibrated", "nll", "brier"]
CURVES = {"loss", "ce", "distance", "disagreement_x", "disagreement_x_cf", "masked"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """The folder of a sweep of one very short run through the real command."""
    folder = tmp_path_factory.mktemp("wandb")
    settings = """-m seed=1 sweep=mine logger.wandb.offline=true trainer.enable_checkpointing=true
        logger.wandb.log_model=true data.train_images=96 data.test_images=12 data.holdout=32 trainer.max_epochs=1
        trainer.log_every_n_steps=1 trainer.enable_progress_bar=false data.num_workers=0""".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(folder / "data")}
    line = [sys.executable, str(CONF.parent / "run.py"), *settings]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "sweeps" / "mine"


@pytest.fixture(scope="module")
def logged(sweep: Path) -> LoggedRun:
    (run,) = read_logged([sweep])
    return run


def test_a_run_is_a_good_citizen(sweep: Path, logged: LoggedRun):
    record = json.loads((sweep / "run" / "results.json").read_text())
    assert (logged.project, logged.group, logged.job_type) == ("robustft", "mine", "counterfactual")
    assert (logged.name, logged.tags) == ("run", ["counterfactual", "mask=object", "fill=single", "tiny"])
    assert {key: logged.config[key] for key in ("mask.kind", "mask.threshold", "beta", "optimizer.lr", "seed")} == {
        "mask.kind": "object", "mask.threshold": 0.3, "beta": 1.0, "optimizer.lr": 5e-4, "seed": 1
    }  # fmt: skip
    expected = {"id/top1": record["id"]["top1"], "ood/avg": record["ood_avg"]}
    expected |= {"holdout/top1": record["holdout"]["top1"]}
    expected |= {f"ood/{name}": record["ood"][name]["top1"] for name in SETS}
    for metric in METRICS:
        expected |= {f"{metric}/id": record["id"][metric], f"{metric}/holdout": record["holdout"][metric]}
        expected |= {f"{metric}/ood/{name}": record["ood"][name][metric] for name in SETS}
        expected[f"{metric}/ood/avg"] = sum(record["ood"][name][metric] for name in SETS) / len(SETS)
    assert {key: logged.summary[key] for key in expected} == pytest.approx(expected)
    steps = [row for row in logged.history if "train/loss" in row]
    assert [row["trainer/global_step"] for row in steps] == [1, 2]
    assert {key.removeprefix("train/") for row in steps for key in row} >= CURVES


def test_a_run_killed_before_anything_was_written_is_none(sweep: Path, tmp_path: Path):
    file = tmp_path / "offline-run-1-dead" / "run-dead.wandb"
    file.parent.mkdir()
    file.write_bytes(next(sweep.rglob("run-*.wandb")).read_bytes()[:HEADER])
    assert read_logged([tmp_path]) == []


def test_gallery_table_and_model_are_there(sweep: Path, logged: LoggedRun):
    files = next(sweep.rglob("offline-run-*")) / "files"
    images = logged.of_type("image-file")
    assert set(images) == {f"gallery/{name}" for name in ["scenes", *SETS]}
    for key, image in images.items():
        own = sweep / "run" / "gallery" / f"{key.removeprefix('gallery/')}.png"
        assert (files / image["path"]).read_bytes() == own.read_bytes()
    table = json.loads((files / logged.of_type("table-file")["results"]["path"]).read_text())
    assert table["columns"] == ["model", "set", "top1", "images", *METRICS]
    rows = {(model, name): (top1, count) for model, name, top1, count, *_ in table["data"]}
    assert {name for model, name in rows if model == "zero-shot"} == {"scenes", *SETS, "holdout"}
    record = json.loads((sweep / "run" / "results.json").read_text())
    assert rows["counterfactual", "scenes_a"] == (record["ood"]["scenes_a"]["top1"], 12)
    of_scenes = next(row for row in table["data"] if row[:2] == ["counterfactual", "scenes"])
    assert of_scenes[4:] == [record["id"][metric] for metric in METRICS]
    assert f"model-{logged.id}" in logged.artifacts


def test_every_key_of_the_dashboard_is_logged(sweep: Path, logged: LoggedRun, tmp_path, capsys):
    out = tmp_path / "dashboard.json"
    assert dashboard.main([str(sweep), "--dry-run", "--out", str(out)]) == 0
    assert "1 run of project robustft" in capsys.readouterr().out
    spec = json.loads(out.read_text())
    used = dashboard.used_keys(spec)
    assert used <= logged.keys
    assert used >= {"id/top1", "ood/avg", *(f"ood/{name}" for name in SETS)}
    assert used >= {"trainer/global_step", "results", "gallery/scenes_a", *(f"train/{name}" for name in CURVES)}
    (runs,) = spec["spec"]["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["value"]) == ("group", "mine")
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    named = [section["name"] for section in sections]
    assert named == ["ID and OOD", "Shifts", "Metrics", "Training", "Gallery", "Per set"]
    assert used >= {f"{metric}/{place}" for metric in METRICS for place in ("id", "ood/avg")}
    (scatter, *_) = sections[0]["panels"]
    assert (scatter["config"]["xAxis"], scatter["config"]["yAxis"]) == ("summary:id/top1", "summary:ood/avg")


class StandIn(BaseHTTPRequestHandler):
    """Answers as far as a W&B server is asked when a dashboard is created."""

    created: list[dict] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        variables = json.loads(body).get("variables") or {} if self.path.endswith("/graphql") else {}
        if "spec" in variables:
            self.created.append(variables)
        view = {"id": "1", "name": "nw-abc-v", "displayName": "", "spec": "{}"}
        viewer = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        answer = json.dumps({"data": {"viewer": viewer, "upsertView": {"view": view, "inserted": True}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_with_a_server_the_dashboard_is_created(sweep: Path, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(CONF.parent), "WANDB_MODE": "online"}
    line = [sys.executable, "-m", "robustft.report.dashboard", str(sweep)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert f"Dashboard: {address}/me/robustft?nw=abc" in done.stdout
    (created,) = StandIn.created
    assert (created["entityName"], created["projectName"]) == ("me", "robustft")
    assert created["displayName"] == "ID and OOD · mine" and "summary:ood/avg" in created["spec"]


def test_mistakes_are_named(tmp_path, capsys):
    assert dashboard.main([str(tmp_path)]) == 1
    assert "no W&B files of runs in there" in capsys.readouterr().err


def test_long_records_and_files_cut_off_are_read(tmp_path):
    def piece(kind: int, content: bytes) -> bytes:
        return bytes(4) + len(content).to_bytes(2, "little") + bytes([kind]) + content

    room = BLOCK - 2 * HEADER
    whole = b":W&B" + bytes(3) + piece(2, b"a" * room) + piece(4, b"b" * 10) + piece(1, b"last")
    assert list(_records(whole)) == [b"a" * room + b"b" * 10, b"last"]
    assert list(_records(whole[:-2])) == [b"a" * room + b"b" * 10]
    assert list(_records(b"something else")) == []
