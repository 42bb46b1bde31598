"""A user's own images by the command: what is typed, what comes with it, what mistakes get."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict
from safetensors.torch import load_file

from robustft.cli import plan
from robustft.cli.compose import complete, compose_first, parse
from robustft.common import configs
from robustft.common.errors import UserError
from robustft.components import instantiated
from robustft.data.sets import Preprocess
from tests.data.own import colour, write_domains
from tests.small import ROOT
from tests.test_resume import AT_STEP

HALVES = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_domains(tmp_path_factory.mktemp("images"))


def composed(*typed: str):
    cfg = compose_first(parse(typed))
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def test_own_images_bring_a_model_for_photographs() -> None:
    assert composed("data=folders").model.name == "vitb32"
    assert composed("data=folders").data._target_.endswith("FolderImages")
    assert composed("data=folders", "model=tiny").model.name == "tiny"
    assert composed("model=vitb16", "data=domains").model.name == "vitb16"
    assert composed("data=scenes").model.name == composed().model.name == "tiny"
    assert [str(one.input_line) for one in complete(parse(["data=folders,table"]))][0] == "model=vitb32"
    assert len(complete(parse(["data=folders,scenes"]))) == 2  # both is more than can be meant
    assert len(complete(parse(["data=folders", "experiment=debug"]))) == 2  # a preset chooses for itself


def test_what_a_config_is_made_from_brings_along_too(tmp_path: Path, monkeypatch) -> None:
    from robustft.cli import sources

    monkeypatch.setattr(sources, "_added", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "pets.yaml").write_text("defaults: [folders, _self_]\ntrain: pets\n")
    sources.add(tmp_path / "own")
    cfg = composed("data=pets", "data.shifts.drawn=drawings")
    assert cfg.model.name == "vitb32" and cfg.data.train == "pets" and cfg.data.shifts.drawn == "drawings"


def test_shifts_take_new_names_without_a_plus() -> None:
    cfg = composed("data=folders", "data.shifts.zebra=z", "data.shifts.my-set_2=a", "+data.shifts.old=b")
    assert dict(cfg.data.shifts) == {"zebra": "z", "my-set_2": "a", "old": "b"}
    assert list(cfg.data.shifts) == ["zebra", "my-set_2", "old"]
    again = composed("data=folders", "++data.shifts.zebra=z")  # as it is kept for resuming
    assert dict(again.data.shifts) == {"zebra": "z"}
    with pytest.raises(UserError, match="unknown setting 'data.shift.x'. Did you mean data.shifts"):
        composed("data=folders", "data.shift.x=z")


def mistakes(root: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """What the config alone can tell, by a name for it."""
    train = ("data=folders", f"data.train={root}/photo")
    domains, table = ("data=domains", f"data.root={root}"), ("data=table", f"data.path={root}/t.csv")
    return {
        "no training folder": (("data=folders",), "data.train is not set: give the folder"),
        "missing training folder": (("data=folders", "data.train=/no/where"), "data.train=/no/where: no such folder"),
        "a file": (("data=folders", f"data.train={__file__}"), "no such folder (that is a file)"),
        "missing below the root": (
            ("data=folders", f"data.root={root}", "data.train=foto"),
            f"data.train=foto ({root}/foto): no such folder",
        ),
        "missing val": ((*train, "data.val=v"), "data.val=v: no such folder"),
        "missing shift": (
            (*train, "data.shifts.x=nowhere"),
            "data.shifts.x=nowhere: no such folder. Expected",
        ),
        "shift of scenes": (("data.shifts.x=nowhere",), "data.shifts.x=nowhere does nothing with data=scenes"),
        "missing names": ((*train, "data.class_names=n.json"), "data.class_names=n.json: no such file"),
        "names in lines": (
            (*train, f"data.class_names={__file__}"),
            f"data.class_names={__file__}: it ends in .py, expected .json or .csv: JSON",
        ),
        "candidates": ((*train, "data.candidates=some"), "data.candidates=some: expected one of all, present"),
        "unknown": ((*train, "data.unknown=maybe"), "data.unknown=maybe: expected one of refuse, skip"),
        "sampler": ((*train, "data.sampler=domains"), "data.sampler=domains: expected one of shuffle, balanced"),
        "val share": ((*train, "data.val_share=1"), "data.val_share=1: expected a number between 0 and 1"),
        "val share beside val": (
            (*train, f"data.val={root}/sketch", "data.val_share=0.5"),
            f"data.val_share=0.5 does nothing with data.val={root}/sketch",
        ),
        "a dot in a name": ((*train, "data.shifts.a.b=more"), "unknown setting 'data.shifts.a.b'"),
        "shots": ((*train, "data.shots=0"), "data.shots=0: expected a whole number, 1 or more"),
        "templates": ((*train, "data.templates=3"), "data.templates=3: expected text or a list of text"),
        "sampler that trains nothing": (
            (*train, "method=zeroshot", "data.sampler=balanced"),
            "data.sampler=balanced does nothing with method=zeroshot",
        ),
        "prepared": ((*train, "data.prepared=copies"), "data.prepared=copies: no such folder. Add prepare=true"),
        "lossy": ((*train, "data.lossy=true"), "unknown setting 'data.lossy'"),
        "no domains": (("data=domains",), "data.root is not set"),
        "source": ((*domains, "data.source=3"), "data.source=3: expected text or a list of text"),
        "no table": (("data=table",), "data.path is not set: give the table"),
        "missing table": (table, f"data.path={root}/t.csv: no such file"),
        "column": ((*table[:1], f"data.path={__file__}", "data.columns.path=3"), "data.columns.path=3: expected text"),
        "no hub name": (("data=huggingface",), "data.path is not set"),
        "augment": ((*train, "augment=crops"), "augment=crops: no such option. Did you mean augment=crop?"),
        "idle augment": (
            (*train, "augment=crop", "method=zeroshot"),
            "augment=crop does nothing with method=zeroshot",
        ),
        "scale": ((*train, "augment=crop", "augment.scale=[0.5,2]"), "augment.scale=[0.5, 2]: expected a list"),
        "scale of none": ((*train, "augment.scale=[0.5,1]"), "augment.scale"),
    }


@pytest.mark.slow
def test_mistakes_are_told_before_anything_is_imported(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (typed, words) in mistakes(root).items():
        with pytest.raises(UserError) as error:
            plan.make_plan(list(typed))
        message = str(error.value)
        assert words in message and "\n" not in message and len(message) < 500, f"{name}: {message}"
    assert not list(tmp_path.iterdir())  # nothing half-written


def run(folder: Path, *arguments: str, stop_at: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command, in a folder; it is terminated in the optimiser's step ``stop_at``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    if stop_at is not None:
        (folder / "stand_in").mkdir(exist_ok=True)
        (folder / "stand_in" / "sitecustomize.py").write_text(AT_STEP)
        environment["PYTHONPATH"] = os.pathsep.join([str(folder / "stand_in"), str(ROOT)])
        environment |= {"AT_STEP": str(stop_at), "SIGNAL": "15"}
    few = ("model=tiny", "model.pretrained=null", "logger=none", "trainer.enable_progress_bar=false")
    line = [sys.executable, str(ROOT / "run.py"), *few, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_run_a_rerun_and_its_results(root: Path, tmp_path: Path) -> None:
    typed = (
        "data=folders",
        f"data.train={root}/photo",
        f"data.shifts.z={root}/sketch",
        f"data.shifts.a={root}/cartoon",
    )
    done = run(tmp_path, *typed, "trainer.max_steps=3", "hydra.run.dir=r")
    assert done.returncode == 0, done.stderr
    assert "small set: data.batch_size=8 (16 images to train on; what is typed wins)" in done.stdout
    record = json.loads((tmp_path / "r" / "results.json").read_text())
    assert (record["id"]["name"], record["id"]["n"]) == ("val", 4)
    assert list(record["ood"]) == ["z", "a"] and record["holdout"]["n"] == 2
    assert record["config"]["data"]["batch_size"] == 8
    again = run(tmp_path, "method=evaluate", "checkpoint=r", *typed, "hydra.run.dir=e")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "e" / "results.json").read_text())["ood"] == record["ood"]
    assert run(tmp_path, *typed, "method=linear_probe", "trainer.max_steps=2").returncode == 0


def test_mistakes_that_only_the_images_tell(root: Path, tmp_path: Path, monkeypatch) -> None:
    colour(tmp_path / "more" / "cat" / "1.png", 1)
    colour(tmp_path / "more" / "dgo" / "1.png", 2)
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    colour(tmp_path / "bad" / "dog" / "1.png", 3)
    for i in range(5):
        colour(tmp_path / "bad" / "cat" / f"{i}.png", i)
    (tmp_path / "bad" / "dog" / "2.png").write_bytes(b"")
    for names, rows in (("t.csv", "path,label\nx.png,cat\ny.png,cat\n"), ("c.csv", "file,label\nx,cat\n")):
        (tmp_path / names).write_text(rows)
    train = ("data=folders", f"data.train={root}/photo")
    monkeypatch.chdir(tmp_path)
    for typed, words in {
        (*train, "data.shifts.m=more"): "m: 1 class unknown to the training images: dgo (dog?)",
        (*train, "data.shifts.h=hollow"): "data.shifts.h=hollow: expected a folder for each class",
        (*train, "data.shifts.val=more"): "a shift cannot be called 'val'",
        ("data=folders", "data.train=bad"): "bad/dog/2.png: the file is empty",
        (*train, "data.batch_size=64"): "data.batch_size=64 is more than the 16 training images",
        (*train, "data.holdout=500"): "data.holdout=500: of 18 images at most 15 can be held out",
        ("data=domains", f"data.root={root}"): "say which domains to train on",
        (
            "data=domains",
            f"data.root={root}",
            "data.source=foto",
        ): "data.source=foto: no such domain. Did you mean photo?",
        ("data=table", "data.path=t.csv"): "t.csv: 2 of 2 images are not there (x.png, y.png)",
        ("data=table", "data.path=c.csv"): "c.csv: no column 'path'",
    }.items():
        data = instantiated(configs.plain(composed(*typed))["data"], preprocess=HALVES, seed=0)
        with pytest.raises(UserError) as error:
            data.verify()
            data.settle({})
            data.check_batch_size()
        message = str(error.value)
        assert words in message and "\n" not in message and len(message) < 500, message


@pytest.mark.slow
def test_the_embedded_model_does_not_know_these_words(root: Path, tmp_path: Path) -> None:
    end = run(tmp_path, "data=folders", f"data.train={root}/photo", "model.pretrained=embedded")
    assert end.returncode == 1 and "Traceback" not in end.stderr and "does not know" in end.stderr, end.stderr
    assert end.stderr[end.stderr.index("error: ") :].count("\n") == 1


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_end(root: Path, tmp_path: Path) -> None:
    """The batch and the length that a small set settles for are found again, and so are augmented images."""
    typed = ("data=table", f"data.path={_table(root, tmp_path)}", "augment=flip_crop", "data.sampler=balanced")
    typed += ("trainer.max_steps=6", "save_minutes=0", "data.corruptions=[jpeg]")
    stopped = run(tmp_path, *typed, "hydra.run.dir=two", stop_at=4)
    assert stopped.returncode == 130 and "interrupted after step" in stopped.stderr, stopped.stderr
    assert run(tmp_path, "resume=two").returncode == 0
    assert run(tmp_path, *typed, "hydra.run.dir=one").returncode == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    records = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert records[0]["ood"] == records[1]["ood"] and list(records[0]["ood"]) == ["sketch", "corrupted_jpeg"]
    assert records[0]["protocol"]["augment"] == "flip_crop"


def _table(root: Path, folder: Path) -> Path:
    with (folder / "t.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("path", "label", "split"))
        for path in sorted(root.glob("*/*/*.png")):
            if (split := path.parts[-3]) != "cartoon":
                lines.writerow((path, path.parent.name, "train" if split == "photo" else split))
    return folder / "t.csv"
