"""Every command and the code of docs/using-a-model.md, in their order, where the page says that they are typed."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from robustft.cli import main as cli
from robustft.deploy import app
from tests.small import ROOT, command

PAGE = (ROOT / "docs" / "using-a-model.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(run, tmp_path / "runs" / "one")
    shutil.copytree(pictures, tmp_path / "holiday")
    Image.open(pictures / "b.png").save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 9 and all(line[0] == "robustft" for line in lines)
    (page,) = [line for line in lines if line[1] == "app"]
    assert app.check(app.parse(page[2:])).file.is_file()  # it answers until it is stopped: see test_app.py
    for line in [line for line in lines[:-1] if line is not page]:
        monkeypatch.setattr(sys, "argv", line)
        assert cli.main() == 0, line
    for name in ("answers.csv", "answers.jsonl", "features.npy"):
        assert (place / name).is_file()
    for name, file in {
        "open_clip": "head.safetensors",
        "onnx": "model.onnx",
        "pt2": "model.pt2",
        "transformers": "preprocessor_config.json",
    }.items():
        assert (place / "out" / name / file).is_file() and (place / "out" / name / "README.md").is_file()
    (code,) = blocks("python")
    known: dict[str, Any] = {}
    exec(code, known)
    assert [len(answer) for answer in known["answers"]] == [2, 2] and known["answers"][0] == known["answers"][1]
    assert known["logits"].shape == (1, 16)


@pytest.mark.slow
def test_from_elsewhere(place: Path) -> None:
    import open_clip  # noqa: F401 -- knows of the tiny model by then

    from robustft.models.weights import create_clip

    torch.save(create_clip("tiny", "embedded", 0).state_dict(), place / "theirs.pt")
    line = shlex.split(blocks("bash")[-1])
    typed = [word for word in line[1:] if word not in ("model=tiny", "trainer=cpu")]  # among the small settings
    done = command(place, *typed)
    assert done.returncode == 0, done.stderr
    assert (place / "runs" / "theirs" / "model.safetensors").is_file()
