"""Caches cost time, never the run: wherever they are and whatever the file system can do."""

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from robustft.common import cache, homes
from robustft.common.cache import cache_folder, one_at_a_time, remembered
from robustft.common.files import save_tensors
from robustft.training.trainer import agreement, make_trainer
from tests.small import ROOT, SMALL, command

PLAIN = {"precision": "32-true", "enable_progress_bar": False}


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(cache, "_said", [])
    return lambda: [record.message for record in caplog.records if "cannot keep results in the cache" in record.message]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = tmp_path / ".cache" / "robustft"
    for name in ("ROBUSTFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == usual
    for value in ("", " ", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == usual
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "robustft"
    monkeypatch.setenv("ROBUSTFT_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "robustft"
    monkeypatch.setenv("ROBUSTFT_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_a_user_without_a_home(monkeypatch):
    for name in ("ROBUSTFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folder().parent == Path(tempfile.gettempdir())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_what_cannot_be_kept_is_computed_anew(tmp_path, monkeypatch, said, number):
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"values": torch.arange(3)}

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        for _ in range(2):
            assert remembered(tmp_path / "heads" / "file", make)["values"].tolist() == [0, 1, 2]
    assert len(made) == 2 and not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert remembered(tmp_path / "new" / "file", make)["values"].tolist() == [0, 1, 2]
        with one_at_a_time(tmp_path / "other" / "file"):
            pass
    (message,) = said()  # once in a process
    assert os.strerror(number) in message and "ROBUSTFT_CACHE=DIR" in message
    with pytest.raises(ZeroDivisionError), one_at_a_time(tmp_path / "file"):  # an error of the work is not the cache's
        1 / 0  # noqa: B018
    for _ in range(2):
        assert remembered(tmp_path / "heads" / "file", make)["values"].tolist() == [0, 1, 2]
    assert len(made) == 4


def test_a_library_gets_a_folder_where_its_own_cannot_be_written(tmp_path, monkeypatch):
    for name in homes.FOLDERS:
        monkeypatch.delenv(name, raising=False)

    def homeless() -> str:
        raise RuntimeError("could not determine the home directory")

    writable = str(tmp_path / "new" / "one")
    folders = {"MPLCONFIGDIR": lambda: "/proc/x", "WANDB_CACHE_DIR": homeless, "WANDB_DATA_DIR": lambda: writable}
    monkeypatch.setattr(homes, "FOLDERS", folders)
    homes.stand_in()
    folder = Path(os.environ["MPLCONFIGDIR"])
    assert os.environ["WANDB_CACHE_DIR"] == str(folder)
    for name in ("MPLCONFIGDIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name)
    assert folder.is_dir() and "WANDB_DATA_DIR" not in os.environ and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_home_that_cannot_be_written(tmp_path):
    """The whole command, with all that writes into a home: one line says so."""
    gone = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "ROBUSTFT_CACHE", *homes.FOLDERS)
    environment = {key: value for key, value in os.environ.items() if key not in gone}
    environment |= {"HOME": "/proc", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    line = [sys.executable, str(ROOT / "run.py"), *SMALL, "logger=wandb", "trainer.max_steps=2"]
    end = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    said = end.stdout + end.stderr
    assert end.returncode == 0 and list(tmp_path.glob("runs/*/*/results.json")), said
    assert said.count("/proc") == said.count("cannot keep results in the cache /proc/.cache/robustft") == 1, said
    assert not end.stderr.strip() and "Traceback" not in said, said


NO_FLOCK = """
import errno, fcntl

def flock(*_):
    raise OSError(errno.ENOLCK, "no locks here")

fcntl.flock = flock
"""


@pytest.mark.slow
def test_a_file_system_without_locks(tmp_path):
    kept = {"ROBUSTFT_CACHE": str(tmp_path / "cache")}
    line = ("trainer.max_steps=1", "method=finetune", "hydra.run.dir=mine")
    end = command(tmp_path, *line, stand_in=NO_FLOCK, **kept)
    assert end.returncode == 0 and not end.stderr.strip(), end.stderr
    assert json.loads((tmp_path / "mine/results.json").read_text())["schema"] == 2
    assert not list(tmp_path.rglob("*.softlock")) and list((tmp_path / "cache").rglob("*.safetensors"))


def _one_of_two(rank: int, folder: Path, port: int) -> None:
    """A process of a run in whose cache the file is there for one of them, and not for the other."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    trainer = make_trainer({"accelerator": "cpu", "devices": 2, "strategy": "ddp", **PLAIN}, folder)
    made = []

    def make() -> dict[str, torch.Tensor]:
        share = torch.tensor([rank + 1.0])
        made.append(trainer.strategy.reduce(share, reduce_op="sum"))  # all take part, or all wait
        return {"value": made[0]}

    for finder in (0, 1):
        path = folder / f"{finder}" / "value.safetensors"
        if rank == finder:
            save_tensors(path, {"value": torch.tensor([3.0])})
        # Its own folder, for the other one: nothing there.
        found = remembered(path if rank == finder else folder / "empty" / str(finder), make, agreement(trainer))
        assert found["value"].tolist() == [3.0] and len(made) == 1
        made.clear()
    trainer.strategy.barrier()  # what is kept by now is found by both
    path = folder / "both.safetensors"
    remembered(path, make, agreement(trainer))
    trainer.strategy.barrier()
    made.clear()
    assert remembered(path, make, agreement(trainer))["value"].tolist() == [3.0] and not made


@pytest.mark.slow
def test_what_one_process_finds_alone_is_made_by_all(tmp_path: Path) -> None:
    """A cache that appears, or goes, between the looks of two processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_one_of_two, args=(rank, tmp_path, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    waiting = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
    assert waiting == [False, False] and [process.exitcode for process in processes] == [0, 0]
