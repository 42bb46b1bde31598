"""What a model still knows: against a plain computation, kept for the zero-shot model, written, shown, refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console

import robustft
from robustft.cli import plan
from robustft.common.errors import UserError
from robustft.data.own.tasks import make_task
from robustft.data.scenes.captions import TASKS
from robustft.data.sets import Preprocess, RetentionTask
from robustft.evaluation import retention
from robustft.evaluation.retention import retained
from robustft.evaluation.schema import find_fault
from robustft.evaluation.summary import print_table
from robustft.evaluation.verdict import verdict
from robustft.models import tiny
from robustft.models.classifier import Classifier
from robustft.models.text import without_visual
from robustft.models.weights import create_clip
from tests.small import do, prepared, work  # noqa: F401 (a fixture)

KNOWING = ["model.pretrained=embedded", "optimizer.lr=0.01", "data.test_images=48", "metric=top1"]


def by_hand(model: Classifier, task: RetentionTask, clip: torch.nn.Module) -> float:
    """n(f)·T with T the mean over templates of unit prompt embeddings, made unit again; all of open_clip's own."""
    tokenizer, images = tiny.tokenizer(), task.images.dataset
    with torch.no_grad():
        texts = [F.normalize(clip.encode_text(tokenizer([t.format(c) for t in task.templates])), dim=-1)
                 for c in task.class_names]  # fmt: skip
        rows = F.normalize(torch.stack([text.mean(0) for text in texts]), dim=-1)
        pixels = torch.stack([images[i][0] for i in range(len(images))]).float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocess.mean, model.preprocess.std))
        features = F.normalize(model.visual((pixels - mean) / std), dim=-1)
    return float((features @ rows.T).argmax(1).eq(images.labels).double().mean())


@pytest.fixture(scope="module")
def run(work: Path) -> tuple[Path, dict[str, Any]]:  # noqa: F811
    """A fine-tuned run with enough of a learning rate to forget."""
    return work / "tuned", do(work / "tuned", "method=finetune", *KNOWING)


@pytest.fixture(scope="module")
def tasks(run, work: Path) -> list[RetentionTask]:  # noqa: F811
    return prepared(work / "again", "method=finetune", *KNOWING).data.retention_tasks()


def test_scenes_are_asked_for_context_and_style(run, tasks: list[RetentionTask]) -> None:
    folder, record = run
    clip, after = create_clip("tiny", "embedded", 0), robustft.load(folder)
    before = Classifier(create_clip("tiny", "embedded", 0).visual, after.head, after.architecture).eval()
    assert [task.name for task in tasks] == list(record["retention"]) == ["context", "style"]
    for task in tasks:
        found = record["retention"][task.name]
        assert found["n"] == 48 and found["top1_own_text"] is None
        assert found["zeroshot_top1"] == pytest.approx(by_hand(before, task, clip), abs=1e-9)
        assert found["top1"] == pytest.approx(by_hand(after, task, clip), abs=1e-9)
    assert any(one["top1"] != one["zeroshot_top1"] for one in record["retention"].values())
    assert find_fault(record) is None


def test_the_zero_shot_model_is_asked_once(run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked: list[tuple[list[str], int]] = []
    scores, encode, encoded = retention.Retention._scores, Classifier.encode, [0]

    def ask(self, model, questions):
        encoded[0] = 0
        found = scores(self, model, questions)
        asked.append(([one.name for one in questions], encoded[0]))
        return found

    def count(self, images, *rest):
        encoded[0] += len(images)
        return encode(self, images, *rest)

    monkeypatch.setattr(retention.Retention, "_scores", ask)
    monkeypatch.setattr(Classifier, "encode", count)
    untrained = [s for s in KNOWING if not s.startswith("optimizer")]
    record = do(work / "evaluated", "method=evaluate", f"checkpoint={run[0]}", *untrained)
    assert record["retention"] == run[1]["retention"]
    assert asked == [(["context", "style"], 48)]  # of the fine-tuned model alone, and each picture once
    asked.clear()
    record = do(work / "zeroshot", "method=zeroshot", *untrained)
    assert asked == [] and all(one["top1"] == one["zeroshot_top1"] for one in record["retention"].values())


def test_own_folders_tables_and_names(work: Path, run) -> None:  # noqa: F811
    """Folders and a table of the same images are one task; a scene is told apart as open_clip does it."""
    scenes = prepared(work / "scenes", *KNOWING).data.retention_tasks()[0]
    rows = ["path,label,split"]
    for i in range(48):
        name = scenes.class_names[int(scenes.images.dataset.labels[i])].split()[-1]
        path = work / "places" / "test" / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes.images.dataset[i][0].permute(1, 2, 0).numpy()).save(path)
        rows.append(f"{path},{name},{'test' if i % 2 else 'train'}")
    (work / "places.csv").write_text("\n".join(rows))
    called = {name.split()[-1]: name for name in scenes.class_names}
    (work / "names.json").write_text(json.dumps(called))
    templates = ",".join(f"'{template}'" for template in scenes.templates)
    common = [f"templates=[{templates}]", f"class_names={work}/names.json"]
    typed = [f"retain.places={work}/places", "retain.places.split=test", "retain.style=false"]
    typed += [f"retain.listed={work}/places.csv", "retain.listed.kind=table", "retain.half.kind=table"]
    typed += [f"retain.half={work}/places.csv", "retain.half.split=train", "retain.few.split=test"]
    typed += [f"retain.few={work}/places", "retain.few.images=5"]
    typed += [f"retain.{name}.{setting}" for name in ("places", "listed", "half", "few") for setting in common]
    found = do(work / "own", "method=finetune", *KNOWING, *typed)["retention"]
    assert list(found) == ["context", "places", "listed", "half", "few"]
    assert found["context"] == run[1]["retention"]["context"]
    assert found["places"] == found["listed"] == found["context"] and found["half"]["n"] == 24
    assert found["few"]["n"] == 5
    assert json.loads((work / "own" / "results.json").read_text())["config"]["retain"]["few"]["images"] == 5


@pytest.mark.slow
def test_what_cannot_be_asked(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    table = tmp_path / "t.csv"
    table.write_text("path,label\n")
    for typed, words in {
        ("model.pretrained=null", "retain.a=one"): "retain.a.path=one does nothing with model.pretrained=null",
        ("model=timm", "model.architecture=vit_tiny_patch16_224", "model.pretrained=timm", f"data.root={tmp_path}",
         "retain.a=one", "method=finetune"): "retain.a.path=one does nothing with model=",
        ("retain.delta=one",): "retain.delta: loggers have the mean change under that name. Choose another one",
        ("retain.a=nowhere",): "retain.a=nowhere: no such folder. Expected one with class folders",
        ("retain.a=t.csv",): "t.csv: no such folder. Expected one with class folders; retain.a.kind=table reads",
        ("retain=one",): "retain: each task has a name of your own: retain.NAME=DIR",
        ("retain.a=one", "retain.a.kind=table"): "retain.a=one: no such file. Expected a table",
        ("retain.a.kind=table",): "retain.a.path has no value: retain.a=DIR",
        ("retain.a=one", "retain.a.kind=folder"): "retain.a.kind=folder: expected one of folders, table, torchvision",
        ("retain.a=one", "retain.a.paths=two"): "unknown setting 'retain.a.paths'",
        ("retain.a=one", "retain.a.images=0"): "retain.a.images=0: expected a whole number, 1 or more, or null",
        ("retain.a=true",): "retain.a.path=true: expected",
    }.items():  # fmt: skip
        with pytest.raises(UserError) as error:
            plan.make_plan(list(typed))
        assert words in str(error.value) and "\n" not in str(error.value), str(error.value)
    half = Preprocess(16, (0.5,) * 3, (0.5,) * 3)
    (tmp_path / "one" / "only").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "only" / "1.png")
    broken = tmp_path / "two" / "b" / "2.png"
    for name in "ab":
        (tmp_path / "two" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "two" / name / "1.png")
    broken.write_bytes(b"")
    for options, words in {
        (("path", "one"),): "retain.x: its images are of one class alone (only)",
        (("path", "two"),): "Cannot read the image two/b/2.png: the file is empty",
        (("path", "two"), ("split", "test")): "retain.x=two/test: no such folder",
        (("path", "t.csv"), ("kind", "table")): "it has a header and no rows",
        (("path", "one"), ("kind", "torchvision")): "the set goes by the task's name, and no set is called x",
    }.items():
        with pytest.raises(UserError) as error:
            make_task("x", dict(options), half)
        assert words in str(error.value) and "\n" not in str(error.value), str(error.value)
    with pytest.raises(UserError, match="retain.contxt=false: no task of that name comes with data=scenes: it brings"):
        do(work / "bad", "method=finetune", *KNOWING, "retain.contxt=false")
    broken.unlink()
    with pytest.raises(UserError, match="retain.two: The tokenizer does not know .* Leave it out: retain.two=false"):
        do(work / "bad", "method=finetune", *KNOWING, f"retain.two={tmp_path}/two")
    assert not (work / "bad" / "results.json").exists()


def test_without_a_text_tower_there_is_none(work: Path) -> None:  # noqa: F811
    assert do(work / "random", "method=finetune")["retention"] is None


def test_a_text_tower_that_was_trained_is_asked_too(work: Path, run, tasks: list[RetentionTask]) -> None:  # noqa: F811
    """Both heads are of the same pictures: the pre-trained tower's, and the run's own."""
    from robustft.experiment import known
    from robustft.inputs import make_retention

    inputs = prepared(work / "both", "method=finetune", *KNOWING)
    inputs.data.setup()
    asked = make_retention(inputs.cfg, inputs)
    assert asked is not None
    asked.ask_zeroshot(inputs.zeroshot)
    model = robustft.load(run[0])
    clip: Any = create_clip("tiny", "embedded", 0)
    with torch.no_grad():
        clip.text_projection += 0.3 * torch.randn(
            clip.text_projection.shape, generator=torch.Generator().manual_seed(1)
        )
    model.text = without_visual(clip)
    found = known(asked, model, inputs.cfg, inputs)
    for task in tasks:
        assert found[task.name]["top1"] == run[1]["retention"][task.name]["top1"]
        assert found[task.name]["top1_own_text"] == pytest.approx(by_hand(model, task, clip), abs=1e-9)
    assert any(one["top1_own_text"] != one["top1"] for one in found.values())


def test_it_is_shown(run) -> None:
    record = json.loads(json.dumps(run[1]))
    record["retention"] = {"pets": {"top1": 0.5, "zeroshot_top1": 0.75, "top1_own_text": None, "n": 4}}
    console = Console(width=120)
    with console.capture() as text:
        print_table(record, console)
    assert "Retention: other tasks, top-1 in %" in text.get()
    assert [cell.strip() for cell in text.get().splitlines()[-2].strip("│").split("│")] == [
        "pets",
        "75.0",
        "50.0",
        "−25.0",
    ]
    assert retained(record["retention"]) == {"retention/pets": 0.5, "retention/delta": -0.25}
    record["retention"]["pets"]["top1_own_text"] = 0.625
    with console.capture() as text:
        print_table(record, console)
    assert "its own text tower" in text.get() and "62.5" in text.get()
    record["retention"]["pets"]["top1"] = 1.5
    assert find_fault(record) == "'retention.pets.top1' is 1.5, expected a fraction in 0…1"


def test_loggers_have_it_and_the_last_line_says_it(work: Path, run, capfd, caplog) -> None:  # noqa: F811
    """CSV here; W&B's summary is given the same numbers (`log_results`)."""
    with caplog.at_level("INFO", logger="robustft"):
        found = do(work / "logged", "method=finetune", *KNOWING, "logger=csv")["retention"]
    assert found == run[1]["retention"]
    with (work / "logged" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name: float(row[name]) for row in rows for name in row if name.startswith("final/ret") and row[name]}
    delta = sum(one["top1"] - one["zeroshot_top1"] for one in found.values()) / 2
    assert logged == pytest.approx(
        {"final/retention/delta": delta, **{f"final/retention/{name}": one["top1"] for name, one in found.items()}}
    )
    assert caplog.messages[-1] == verdict(json.loads((work / "logged" / "results.json").read_text()))
    assert "retention" in caplog.messages[-1] and caplog.messages[-1].startswith("It ")


def test_the_prompts_are_words_of_the_captions() -> None:
    for names, templates in TASKS.values():
        tiny.tokenizer()([template.format(name) for template in templates for name in names])
