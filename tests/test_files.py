"""Atomic files and caches that several processes share."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from robustft.common.cache import remembered
from robustft.common.files import atomic, remove_partial, save_tensors, write
from tests.small import ROOT


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write(path, "first")
    with pytest.raises(ValueError, match="half-way"), atomic(path) as partial:
        partial.write_text("sec")
        raise ValueError("half-way")
    assert path.read_text() == "first" and [file.name for file in path.parent.iterdir()] == ["file.txt"]
    (path.parent / "file.txt.host-1.partial").touch()
    (path.parent / ".host-1+0.partial").mkdir()
    remove_partial(path.parent)
    assert list(path.parent.iterdir()) == [path]


def _begin(path: Path, ready: Path) -> None:
    with atomic(path) as partial:
        partial.write_text("half")
        ready.touch()
        time.sleep(600)


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path: Path) -> None:
    """By the next one that writes there; what living ones, and those of other machines, are writing is not."""
    folder, context = tmp_path / "cache", multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_begin, args=(folder / name, tmp_path / name)) for name in ("one.bin", "another.bin")
    ]
    for writer in writers:
        writer.start()
    while not all((tmp_path / name).exists() for name in ("one.bin", "another.bin")):
        time.sleep(0.01)
    writers[0].kill()
    writers[0].join()
    elsewhere = folder / ".another-machine-0123abcd-1+0.partial"
    elsewhere.mkdir()
    write(folder / "third.txt", "whole")
    left = {place for place in folder.iterdir() if place.name.endswith(".partial")} - {elsewhere}
    assert [path.name for place in left for path in place.iterdir()] == ["another.bin"] and elsewhere.is_dir()
    writers[1].kill()
    writers[1].join()
    write(folder / "third.txt", "whole again")
    assert {path.name for path in folder.iterdir()} == {"third.txt", elsewhere.name}


def test_others_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic(tmp_path / "file") as partial:
            partial.touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def _take(path: Path, made: Path) -> None:
    def make() -> dict[str, torch.Tensor]:
        time.sleep(0.3)
        with made.open("a") as file:
            file.write("made\n")
        return {"values": torch.arange(3)}

    assert remembered(path, make)["values"].tolist() == [0, 1, 2]


def test_processes_make_a_cache_once(tmp_path: Path) -> None:
    path, made = tmp_path / "cache" / "values.safetensors", tmp_path / "made.txt"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_take, args=(path, made)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert made.read_text() == "made\n"


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    tensors = {
        "b.bias": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "a.weight": torch.arange(6).reshape(2, 3).T,
        "empty": torch.zeros(0, 4),
    }
    metadata = {"z": "1", "a": 'quotes " and \\ and \n', "m": "ünïcode 猫 \x7f", "control": "\x01\t"}
    save_tensors(tmp_path / "some.safetensors", tensors, metadata)
    again = load_file(tmp_path / "some.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in tensors.items())
    with safe_open(tmp_path / "some.safetensors", "pt") as file:
        assert file.metadata() == metadata
    save_tensors(tmp_path / "none.safetensors", tensors)
    with safe_open(tmp_path / "none.safetensors", "pt") as file:
        assert not file.metadata() and len(file.keys()) == 3


SAVE = """
from pathlib import Path
from robustft.models import tiny
from robustft.models.weights import save_classifier
from robustft.models.zeroshot import zeroshot_classifier
model = zeroshot_classifier("tiny", None, ["a", "b"], ["{}"], seed=1, tokenizer=tiny.tokenizer())
for k in range(3):
    save_classifier(Path(f"{k}.safetensors"), model, ["a", "b"])
"""


@pytest.mark.slow
def test_equal_models_are_equal_files_in_every_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    running = [subprocess.Popen([sys.executable, "-c", SAVE], cwd=folder, env=environment) for folder in folders]
    assert [process.wait(100) for process in running] == [0, 0]
    paths = [path for folder in folders for path in folder.iterdir()]
    assert len(paths) == 6 and len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) == 1
