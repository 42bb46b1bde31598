"""What --cost says of a study: the kinds of step, the images of each, and real trials of them."""

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from robustft.cli.compose import compose_first, parse
from robustft.cli.identity import resolve
from robustft.common import configs
from robustft.common.locks import locked
from robustft.common.machine import cpu_name, device_name
from robustft.studies import store
from robustft.studies.cost import VANILLA, Throughput, Work, count, kinds, run_trials, show, trials
from robustft.studies.main import main
from robustft.studies.study import MODEL, Entry, Study
from robustft.training.callbacks import duration
from tests.small import SMALL, composed, work  # noqa: F401 (a fixture)

PROBE = ("method=linear_probe",)
MASKED = ("mask=object", "fill=single")
ENTRIES = [
    Entry("zeroshot", ("method=zeroshot",)),
    Entry("vanilla", ("method=finetune", "seed=1"), keep=True),
    Entry("longer", ("method=finetune", "optimizer.lr=1e-3", "trainer.max_epochs=4")),
    Entry("lpft", ("method=lpft",)),
    Entry("probe", ("method=linear_probe", "trainer.max_epochs=3")),
    Entry("masked", (*MASKED, "mask.threshold=0.6", "beta=3")),
    Entry("average", ("method=wiseft", "checkpoint={vanilla}")),
    Entry("taught", (*MASKED, "teacher={average}")),
]
IMAGES = 3 * 16  # of an epoch: 64, 16 of them held out, in batches of 16


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("method=soup", "checkpoints=[{a},{b}]"), []),
        (("method=lpft", "seed=2"), [PROBE, VANILLA]),
        (("method=kd", "temperature=4", "beta=0.1"), [("method=kd",)]),
        (("seed=3",), [()]),
        (("mask=random", "fill=multi", "mask.rate=0.25"), [("mask=random", "fill=multi")]),
        (("mask=random", "fill=none", "mask.rate=0.25"), [("mask=random", "fill=none", "mask.rate=0.25")]),
        (("mask=object", "mask.layers=1", "disagreement=3"), [("mask=object", "mask.layers=1")]),
        (("mask=object", "beta=0.0"), [("mask=object", "beta=0.0")]),
        (("mask=object", "method=kd", "data.holdout_seed=1"), [("method=kd", "mask=object")]),
        (
            ("method=lpft", "trainer.precision=32"),
            [("method=linear_probe", "trainer.precision=32"), ("method=finetune", "trainer.precision=32")],
        ),
    ],
)
def test_kinds_of_step(settings, expected):
    assert kinds(Entry("run", settings)) == expected


@pytest.mark.slow
def test_images_are_counted():
    found = count(ENTRIES, [*SMALL, "model.recipe.probe.epochs=5"])
    assert found.runs == len(ENTRIES)
    assert found.trainings == {VANILLA: 3, PROBE: 2, MASKED: 2}
    assert found.images == {VANILLA: (2 + 4 + 2) * IMAGES, PROBE: (5 + 3) * IMAGES, MASKED: 2 * 2 * IMAGES}
    assert found.encoded == 64
    assert count(ENTRIES[:2], SMALL).encoded == 0
    assert count(ENTRIES[1:2], [*SMALL, "trainer.max_steps=4"]).images == {VANILLA: 4 * 16}


def test_seconds():
    todo = Work(runs=10, images=Counter({VANILLA: 6000, PROBE: 900}), encoded=300)
    speed = Throughput({VANILLA: 2.0, PROBE: 90.0}, run_s=7.0)
    assert speed.seconds(todo) == 6000 / 2 + 900 / 90 + 300 / 6 + 10 * 7
    assert Throughput({MASKED: 2.0}, 0.0).seconds(Work(images=Counter({MASKED: 5}))) == 2.5


def test_what_is_typed_for_trials(tmp_path):
    """What is typed for the study holds, but its length, its logger and the size of evaluations are the trial's."""
    typed = ["model=tiny", "trainer.max_steps=5000", "logger=wandb", "data.eval_images=2000", "mask.threshold=0.5"]
    found = trials(Study([Entry("run", (*MASKED, "data.data_seed=1", "seed=1"))], tmp_path, typed), 7)
    assert list(found) == [MASKED, None]
    assert found[MASKED][-3:] == ["trainer.max_steps=7", "data.eval_images=64", "logger=none"]
    assert found[None] == [*typed[:-1], "data.data_seed=1", "method=zeroshot", "logger=none"]
    cfg = compose_first(parse(found[MASKED]))
    assert (cfg.trainer.max_steps, cfg.data.data_seed, cfg.mask.threshold) == (7, 1, 0.5)
    found = trials(Study([Entry("run", PROBE)], tmp_path, ["data.eval_images=20"]), 7)
    assert list(found) == [PROBE, VANILLA, None]
    assert found[PROBE][-2] == "data.eval_images=20"


@pytest.fixture
def study(work, tmp_path_factory, monkeypatch):  # noqa: F811
    """A study of ENTRIES in a folder of its own."""
    folder = tmp_path_factory.mktemp("study")
    monkeypatch.chdir(folder)
    return Study(ENTRIES, folder, SMALL)


@pytest.mark.slow
def test_trials(study):
    (study.work / ".cost" / "0").mkdir(parents=True)
    (study.work / ".cost" / "0" / "results.json").write_text('{"schema": 1}')  # of a trial that was killed
    records = run_trials(study, 2)
    assert list(records) == [VANILLA, PROBE, MASKED, None]
    for kind, record in records.items():
        assert record["wall_s"] > 0 and (record["train_images_per_s"] or 0) > 0 or kind is None
        assert (record["config"]["trainer"]["max_steps"] == 2) == (kind is not None)
    assert records[PROBE]["method"] == "linear_probe" and records[MASKED]["mask"]["kind"] == "object"
    assert not study.file.exists() and not (study.work / ".cost").exists()
    assert not list(Path(os.environ["ROBUSTFT_CACHE"]).glob("features/*"))  # of a few images: of no use to anyone


@pytest.mark.slow
def test_what_is_said(study, monkeypatch, capsys):
    """With stand-ins for the trials, one of whose accuracies the second stage would choose by."""
    record = {"train_images_per_s": 2.0, "wall_s": 5.0, "chosen": "trial"}
    monkeypatch.setattr(
        "robustft.studies.cost.run_trials", lambda *_: dict.fromkeys([VANILLA, PROBE, MASKED, None], record)
    )
    seen, more = [], Entry("more", ("method=finetune", "trainer.max_epochs=1"))

    def second_stage(results):
        assert list(results) == [entry.name for entry in ENTRIES]
        seen.append({name: record.get("chosen") for name, record in results.items()})
        yield more

    def said() -> str:
        show("study", study, second_stage, 7)
        return capsys.readouterr().out

    before = said()
    images = (2 + 4 + 2 + 1) * IMAGES
    assert re.search(rf"method=finetune +│ +4 │ +{images} │ +2.0 │ +{duration(images / 2)} ", before)
    assert "in all  " in before and "still to do" not in before
    for note in ("up to 7 steps", "three times as fast", "The second stage's settings are not chosen yet"):
        assert note in before
    assert "mask.source=teacher" not in before

    made = {e.name: {"entry": e.name, "config": _made_with(e), "chosen": "result"} for e in [*ENTRIES, more]}
    store.write(study.file, made)
    study = Study(ENTRIES, study.folder, SMALL)
    assert re.search(r"still to do +│ +0 │.* 0 s ", after := said())
    assert "second stage" not in after
    assert set(seen[0].values()) == {"trial"} and set(seen[1].values()) == {"result"}
    store.write(study.file, {name: record for name, record in made.items() if name != ENTRIES[1].name})
    study = Study(ENTRIES, study.folder, SMALL)
    left = duration((2 * IMAGES / 2) + 5)
    assert re.search(rf"still to do +│ +1 │.* {left} ", said())


def _made_with(entry: Entry) -> dict:
    own = [s for s in entry.settings if not MODEL.search(s)]
    models = dict(s.split("=", 1) for s in entry.settings if MODEL.search(s))
    resolve(cfg := composed(*own), sweep=True)
    made = {key: MODEL.sub(r"\1/model.safetensors", value) for key, value in models.items()}
    return configs.plain(cfg) | made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entries", "arguments", "expected"),
    [
        (
            [Entry("bad", ("mask=object", "mask.layers=0"))],
            [],
            r"mask=object mask\.layers=0 failed: .*\(log: .*log\)",
        ),
        (ENTRIES[:2], ["--steps", "1"], r"--steps=1: the first step is not timed"),
        (ENTRIES[:2], ["--steps", "-1"], r"--steps=-1: the first step is not timed"),
        (ENTRIES[:2], ["data.batch_size=48"], r"method=finetune: no step was timed"),
        (ENTRIES[:2], ["trainer.max_epochs=null"], "give trainer.max_epochs or trainer.max_steps"),
        (
            ENTRIES[:2],
            ["model=vitb32", "data=imagenet", "data.root=nowhere"],
            "^error: data.root=nowhere: no such",
        ),
    ],
)
def test_mistakes(study, monkeypatch, entries, arguments, expected):
    small = [s for s in SMALL if not s.startswith("data")] if "data=imagenet" in arguments else SMALL
    monkeypatch.setattr("sys.argv", ["study.py", "--cost", *small, *arguments])
    with pytest.raises(SystemExit, match=expected):
        main(str(study.folder / "study.py"), lambda cfg: entries, lambda *_: pytest.fail("nothing is to be run"))


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_trial_that_is_killed_or_interrupted(study, monkeypatch):
    def attempt() -> None:
        monkeypatch.setattr("sys.argv", ["study.py", "--cost"])
        main(str(study.folder / "study.py"), lambda cfg: ENTRIES[:2], lambda *_: None)

    monkeypatch.setattr("robustft.studies.cost.execute", die)
    with pytest.raises(SystemExit, match="method=finetune: its process was killed. Was there enough memory"):
        attempt()

    def interrupt(*_) -> None:
        (study.work / ".cost").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("robustft.studies.cost.outcome", interrupt)
    with pytest.raises(SystemExit, match="interrupted; nothing is kept"):
        attempt()
    assert not (study.work / ".cost").exists()
    with locked(study.work / "study", wait=False), pytest.raises(SystemExit, match="another process is at work"):
        attempt()


def test_devices_have_names(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA X")
    assert device_name() == "NVIDIA X"
    assert device_name("cpu") == f"{os.cpu_count()} cores of {cpu_name()}"
