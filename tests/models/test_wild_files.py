"""Weights that ask for more than their size accounts for, and models that do not say what they are."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import robustft
from robustft.common.errors import UserError
from robustft.models import archives, pickled, torchscript
from robustft.models.reading import read_state
from robustft.models.weights import create_clip, save_classifier
from robustft.training.checkpoints import read_position
from tests.test_weights import CLASSES, make
from tests.test_weights import torchscript as archive_of

HOLES = b"\x80\x02]r\xff\xff\xff\x7f."  # an empty list that is kept under the number 2,147,483,647


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        read_state(path)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def changed(path: Path, end: str, content: bytes, how: int = zipfile.ZIP_STORED) -> Path:
    """The archive with other content in the parts whose names end so."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w", how) as new:
        for part in old.namelist():
            new.writestr(part, content if part.endswith(end) else old.read(part))
    path.write_bytes(stream.getvalue())
    return path


@pytest.mark.parametrize("half", [True, False])
def test_a_value_that_is_shown_many_times(half: bool, tmp_path: Path) -> None:
    value = torch.zeros(1, dtype=torch.half if half else torch.float).expand(2**36)
    torch.save({"visual.proj": value}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "larger than what it holds")


@pytest.mark.parametrize("read", [torchscript.read_torchscript, pickled.read_module])
def test_archives_that_grow(read, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.pt"
    monkeypatch.setattr(archives, "MOST_TEXT", 2**20)

    def whole() -> Path:
        if read is torchscript.read_torchscript:
            return archive_of(path, create_clip("tiny", None, seed=3))
        torch.save(nn.Linear(300, 300), path)
        return path

    assert read(whole())
    for end, content in (("/data.pkl", bytes(2**21)), ("/data/0", bytes(2**21)), ("/data.pkl", HOLES)):
        with pytest.raises(pickle.UnpicklingError):
            read(changed(whole(), end, content, zipfile.ZIP_DEFLATED))
        refused(path, "x.pt ")


def test_what_torch_would_unpack(tmp_path: Path, monkeypatch) -> None:
    """A state dict, which is no module and no TorchScript: torch's own reader unpacks whatever is in it."""
    monkeypatch.setattr(archives, "MOST_TEXT", 2**20)
    state = {"visual.proj": torch.zeros(300, 300)}
    for end in ("/data.pkl", "/data/0"):
        torch.save(state, tmp_path / "x.pt")
        changed(tmp_path / "x.pt", end, bytes(2**21), zipfile.ZIP_DEFLATED)
        refused(tmp_path / "x.pt", "x.pt ")
        with pytest.raises(pickle.UnpicklingError, match="unpacks"):
            archives.refuse_swollen(tmp_path / "x.pt")
        shutil.copy(tmp_path / "x.pt", tmp_path / "last.ckpt")
        with pytest.raises(UserError, match="unpacks to more"):
            read_position(tmp_path)


def test_modules_that_hold_each_other_twice(tmp_path: Path) -> None:
    module: nn.Module = nn.Identity()
    for _ in range(60):
        outer = nn.Module()
        outer.add_module("a", module)
        outer.add_module("b", module)
        module = outer
    (tmp_path / "x.pt").write_bytes(pickle.dumps(module))
    refused(tmp_path / "x.pt", "not a readable weights file")
    with pytest.raises(pickle.UnpicklingError, match="without end"):
        pickled.read_module(tmp_path / "x.pt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_classifier(path, make(None, seed=1), CLASSES)
    return path


def told(model: Path, place: str, value: object, folder: Path) -> Path:
    """The model with another value in its metadata; None takes it away."""
    with safe_open(model, "pt") as file:
        metadata = dict(file.metadata())
    if value is None:
        del metadata[place]
    else:
        metadata[place] = value if isinstance(value, str) else json.dumps(value)
    save_file(load_file(model), folder / "model.safetensors", metadata)
    return folder / "model.safetensors"


CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 72, "head_width": 24, "patch_size": 8},
}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((place, None) for place in ("classes", "config", "preprocess", "architecture")),
        *((place, "[") for place in ("classes", "config", "preprocess")),
        *((place, "[" * 100_000) for place in ("classes", "config", "preprocess")),
        ("classes", ["fish", 3, "tree"]),
        ("classes", ["fish"]),
        ("classes", {}),
        ("config", []),
        ("config", {}),
        ("config", {"backbone": "timm"}),
        ("config", CONFIG | {"embed_dim": 97}),
        ("config", {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "width": 10**9}}),
        ("config", {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "width": 2**16 - 24}}),
        ("config", {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "layers": 10**7}}),
        ("config", {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "layers": "4"}}),
        ("config", {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": 128}}),
        ("config", {**CONFIG, "vision_cfg": {"timm_model_name": "hf-hub:evil/model", "image_size": 64}}),
        ("preprocess", {}),
        *(
            ("preprocess", {"size": 64, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bicubic"} | change)
            for change in (
                {"size": 10**6}, {"size": "64"}, {"std": [0, 1, 1]}, {"mean": [0]}, {"mean": "abc"}, {"crop": 0},
                {"interpolation": "best"}, {"resize": "no"}, {"size": 32}, {"unknown": 1},
            )
        ),
        ("text", {"architecture": 1, "pretrained": "x", "sha256": "y"}),
    ],
)  # fmt: skip
def test_a_model_that_does_not_say_what_it_is(place: str, value: object, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        robustft.load(told(model, place, value, tmp_path))
    assert "\n" not in str(error.value) and "is not a model as a run leaves it" in str(error.value)


def test_a_model_without_a_head(model: Path, tmp_path: Path) -> None:
    with safe_open(model, "pt") as file:
        metadata = file.metadata()
    state = {name: value for name, value in load_file(model).items() if name != "head.weight"}
    save_file(state, tmp_path / "model.safetensors", metadata)
    with pytest.raises(UserError, match="no head for its 3 classes"):
        robustft.load(tmp_path / "model.safetensors")
