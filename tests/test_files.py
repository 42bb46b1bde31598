"""Atomic files and caches that several processes share."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from robustft.cache import remembered
from robustft.files import atomic, remove_partial, write


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write(path, "first")
    with pytest.raises(ValueError, match="half-way"), atomic(path) as partial:
        partial.write_text("sec")
        raise ValueError("half-way")
    assert path.read_text() == "first" and [file.name for file in path.parent.iterdir()] == ["file.txt"]
    (path.parent / "file.txt.host-1.partial").touch()
    remove_partial(path.parent)
    assert list(path.parent.iterdir()) == [path]


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
