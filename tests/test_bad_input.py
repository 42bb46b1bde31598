"""Users' mistakes that only the data, the weights or the training can tell, through the real command.

Each gets one message that names the thing and exit status 1, without a traceback, and leaves nothing that looks
finished. What the config alone can tell is tested in test_cli.py.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustft.data.imagenet import official_classes
from robustft.models import tiny
from robustft.models.weights import create_clip, save_classifier
from robustft.models.zeroshot import zeroshot_classifier

ROOT = Path(__file__).parents[1]
SCENES = (
    "model.pretrained=null",
    "data.train_images=96",
    "data.test_images=16",
    "data.batch_size=16",
    "data.holdout=16",
)
SHORT = (*SCENES, "logger=none", "trainer.enable_progress_bar=false")
UNTRAINED = tuple(setting for setting in SHORT if "batch_size" not in setting)
ALONE = tuple(f"data.sets.{name}=false" for name in ("imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet"))


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python run.py ARGUMENTS`` in an empty folder, with a cache of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(folder / "cache")}
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's and ImageNet-A's folders with one small picture a class; the last training picture is cut short."""
    root = tmp_path_factory.mktemp("imagenet")
    classes = official_classes()
    for split, wnids in (("ILSVRC2012/train", classes.wnids), ("ILSVRC2012/val", classes.wnids)):
        for wnid in wnids:
            (root / split / wnid).mkdir(parents=True)
            Image.new("RGB", (8, 8), "red").save(root / split / wnid / "one.png")
    for wnid in classes.imagenet_a[:-1]:  # one class is missing
        (root / "imagenet-a" / wnid).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "imagenet-a" / wnid / "one.png")
    picture = root / "ILSVRC2012/train" / classes.wnids[-1] / "one.png"
    picture.write_bytes(picture.read_bytes()[:45])
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and weights that do not belong where they are given."""
    folder = tmp_path_factory.mktemp("files")
    other = zeroshot_classifier("tiny", None, ["cat", "dog"], ["a {}"], tokenizer=tiny.tokenizer())
    save_classifier(folder / "other_classes.safetensors", other, ["cat", "dog"])
    state = create_clip("tiny", None, seed=0).state_dict()
    save_file({**state, "visual.conv1.weight": torch.zeros(96, 3, 4, 4)}, folder / "other_shape.safetensors")
    return folder


@pytest.mark.slow
def test_each_gets_one_message(tmp_path: Path, imagenet: Path, files: Path) -> None:
    vit = ("model=vitb32", "model.pretrained=null", f"data.root={imagenet}", "logger=none", "data.batch_size=8")
    (tmp_path / "empty").mkdir()
    cases: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "no set in the root": (
            ("model=vitb32", "model.pretrained=null", f"data.root={tmp_path / 'empty'}", "logger=none"),
            ("ILSVRC2012/train", "imagenet-r", "objectnet-1.0", "data.sets.imagenet_a=false"),
        ),
        "a shift set is missing": (vit, ("imagenetv2-matched-frequency-format-val", "imagenet-sketch")),
        "folders that are not the classes": (
            (*vit, *ALONE),
            ("imagenet-a", "folders do not match", "Expected 200", "found 199"),
        ),
        "a picture cut short": (
            (*vit, *ALONE, "data.sets.imagenet_a=false"),
            (official_classes().wnids[-1] + "/one.png", "Cannot read the image"),
        ),
        "a model for other classes": (
            (*UNTRAINED, "method=evaluate", f"checkpoint={files}/other_classes.safetensors"),
            ("other_classes.safetensors", "made for 2 classes", "16 of this data", "are new", "are missing"),
        ),
        "weights of another shape": (
            (*SHORT[1:], f"model.pretrained={files}/other_shape.safetensors"),
            ("visual.conv1.weight", "(96, 3, 4, 4)", "expected (72, 3, 8, 8)"),
        ),
        "a loss that is not finite": (
            (*SHORT, "optimizer.lr=1e30", "trainer.max_epochs=2"),
            ("no longer finite at step", "loss", "ce", "distance"),
        ),
        "a batch that leaves no step": (
            (*SHORT, "data.batch_size=128"),
            ("data.batch_size=128", "80 training images"),
        ),
    }
    with ThreadPoolExecutor(2) as pool:
        folders = {name: tmp_path / name.replace(" ", "_") for name in cases}
        ends = dict(zip(cases, pool.map(lambda n: command(folders[n], *cases[n][0]), cases), strict=True))
    for name, (_, words) in cases.items():
        end = ends[name]
        assert end.returncode == 1, f"{name}: {end.stdout}{end.stderr}"
        assert "Traceback" not in end.stdout + end.stderr, f"{name}: {end.stderr}"
        message = end.stderr[end.stderr.index("error: ") :]
        assert not [word for word in words if word not in message], f"{name}: {message}"
        assert not list(folders[name].glob("runs/**/results.json"))
        assert not list(folders[name].glob("runs/**/model.safetensors"))


@pytest.mark.slow
def test_weights_that_cannot_be_fetched_say_so_at_once(tmp_path: Path, imagenet: Path) -> None:
    """The hub is a host that does not exist: no retries, and the way out is named."""
    sets = (*ALONE, "data.sets.imagenet_a=false", "method=zeroshot", "data.holdout=0")
    environment = {"HF_ENDPOINT": "https://nowhere.invalid", "HF_HOME": str(tmp_path / "hub")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        end = command(tmp_path / "run", "model=vitb32", f"data.root={imagenet}", "logger=none", *sets)
    assert end.returncode == 1 and "Traceback" not in end.stderr
    assert "could not be fetched" in end.stderr and "model.pretrained=FILE" in end.stderr


@pytest.mark.slow
def test_in_a_sweep_the_other_runs_go_on(tmp_path: Path) -> None:
    sweep = ("-m", *SHORT, "trainer.max_steps=2", "optimizer.lr=1e30,1e-4", "mask=none", "sweep=lr")
    end = command(tmp_path, *sweep)
    assert end.returncode == 1 and "Traceback" not in end.stdout + end.stderr
    assert "1 of the runs" in end.stderr and "finite" in end.stderr
    assert [path.parent.name for path in tmp_path.glob("runs/sweeps/lr/*/results.json")] == ["lr-0.0001"]
