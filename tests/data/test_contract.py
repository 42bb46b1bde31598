"""A data class of one's own: one file and one config, through the real command; and what its mistakes get."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustft.common.errors import UserError
from robustft.components import instantiated
from robustft.data import datamodule
from robustft.data.datamodule import RobustnessData
from robustft.data.sets import EvaluationSet, Preprocess, TensorImages
from tests.small import ROOT

HALF = (0.5, 0.5, 0.5)
GIVEN = {"preprocess": Preprocess(8, HALF, HALF), "seed": 0}
TAKES = """
takes:
  settings:
    data.shade: {kind: whole, from: 0, to: 155}
"""


def test_the_example_of_the_docstring_runs() -> None:
    found = doctest.testmod(datamodule)
    assert found.attempted > 5 and not found.failed


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The docstring's class in a file of its own, and its configs, with `takes` and without."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "configs" / "data").mkdir(parents=True)
    (folder / "shades.py").write_text(
        "import torch\n"
        "from robustft.data.datamodule import RobustnessData\n"
        "from robustft.data.sets import EvaluationSet, TensorImages\n\n\n"
        "class Shades(RobustnessData):\n"
        "    name, class_names, templates = 'shades', ['red', 'blue'], ['a {} picture.']\n\n"
        "    def __init__(self, *, shade=100, **options):\n"
        "        super().__init__(**options)\n"
        "        self.shade, self.labels = shade, torch.arange(40) % 2\n\n"
        "    def images(self, shade):\n"
        "        levels = (shade + 100 * self.labels).byte().view(-1, 1, 1, 1)\n"
        "        side = self.preprocess.size\n"
        "        return TensorImages(levels.expand(-1, 3, side, side), self.labels)\n\n"
        "    def training_set(self):\n"
        "        return self.images(self.shade)\n\n"
        "    def evaluation_sets(self):\n"
        "        correct, keys = torch.eye(2, dtype=torch.bool), [str(i) for i in range(40)]\n"
        "        return [EvaluationSet(n, self.images(s), correct, keys) for n, s in (('usual', 100), ('dim_1', 20))]\n"
    )
    plain = "_target_: shades.Shades\nshade: 100\nbatch_size: 8\neval_batch_size: 8\nholdout: 4\n"
    (folder / "configs/data/plain.yaml").write_text(plain)
    (folder / "configs/data/described.yaml").write_text(plain + TAKES)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    usual = ("--config-dir", "configs", "model.pretrained=null", "logger=none", "trainer.enable_progress_bar=false")
    line = [sys.executable, str(ROOT / "run.py"), *usual, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["plain", "described"])
def test_it_runs_by_the_command(own: Path, data: str) -> None:
    done = run(own, f"data={data}", "trainer.max_steps=2", "data.shade=90", "augment=crop", f"hydra.run.dir={data}")
    assert done.returncode == 0, done.stderr
    record = json.loads((own / data / "results.json").read_text())
    assert record["id"]["name"] == "usual" and list(record["ood"]) == ["dim_1"] and record["id"]["n"] == 40
    assert "ID usual" in done.stdout and "dim_1" in done.stdout
    assert run(own, f"data={data}", "check=data").returncode == 0


@pytest.mark.slow
def test_its_mistakes_are_one_line(own: Path) -> None:
    for arguments, words in {
        ("data=described", "data.shade=300"): "data.shade=300: expected a whole number from 0 to 155",
        ("data=described", "prepare=true"): "makes its images in memory",
        ("data=plain", "data.shade=x"): "",
        ("data=plain", "data.colour=3"): "unknown setting 'data.colour'",
    }.items():
        end = run(own, *arguments)
        if words:
            assert end.returncode == 1 and end.stderr.count("\n") == 1 and words in end.stderr, end.stderr


class Small(RobustnessData):
    name, class_names, templates = "small", ["a", "b"], ["{}"]
    labels, sets_called = torch.arange(8) % 2, ("one", "two")

    def training_set(self):
        return self.images()

    def images(self):
        images = TensorImages(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8) % 2)
        images.labels = self.labels
        return images

    def evaluation_sets(self):
        keys = [str(i) for i in range(8)]
        return [EvaluationSet(n, self.images(), torch.eye(2, dtype=torch.bool), keys) for n in self.sets_called]


class NoImages:
    labels = torch.arange(8) % 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "Small has no `name`"),
        ({"class_names": []}, "Small has no `class_names`"),
        ({"class_names": ["a", "b", "c"]}, "one.correct has 2 columns, expected one for each of the 3 classes"),
        ({"labels": torch.arange(8)}, "one has labels from 0 to 7, expected 0 to 1"),
        ({"labels": torch.zeros(8)}, "labels are no tensor of whole numbers"),
        ({"labels": torch.arange(6) % 2}, "6 images and 8 keys|8 images and 6 labels|6 and"),
        ({"sets_called": ("one", "one")}, r"two evaluation sets have one name \(one, one\)"),
        ({"sets_called": ("one", "holdout")}, "cannot be called 'holdout'"),
        ({"sets_called": ("a/b",)}, "cannot be called 'a/b'"),
        ({"sets_called": ()}, "gives none: the first is the ID set"),
        ({"training_set": lambda self: NoImages()}, "without __len__, __getitem__, key, identity"),
        ({"evaluation_sets": lambda self: [3]}, "(gives a int, expected|one name) EvaluationSet"),
    ],
)
def test_what_a_class_gives_is_checked(changes: dict, words: str) -> None:
    made = type("Small", (Small,), changes)(**GIVEN, batch_size=2, eval_batch_size=2, holdout=2)
    with pytest.raises(UserError, match=words) as error:
        made.verify()
    assert "\n" not in str(error.value)


class Half(RobustnessData):
    def training_set(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("nothing.Data", {}, "cannot be imported"),
        ("pathlib.Path", {}, "expected a class that extends RobustnessData"),
        (f"{__name__}.Half", {}, r"it lacks evaluation_sets\(\)"),
        (f"{__name__}.Small", {}, "missing a required"),
        (f"{__name__}.Small", {"batch_size": 2, "eval_batch_size": 2, "colour": 3}, ""),
    ],
)
def test_what_is_no_data_class_is_refused(target: str, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        instantiated({"_target_": target, **options}, **GIVEN)
    assert target in str(error.value) and "\n" not in str(error.value)
