"""A study runs what has no result, keeps results, hands models on, and goes on where it stopped."""

import contextlib
import json
import math
import re
from concurrent.futures import Future
from pathlib import Path

import pytest

from robustft.cli import compose, identity, naming
from robustft.common.configs import plain
from robustft.common.errors import UserError
from robustft.common.locks import locked
from robustft.evaluation import disagreement
from robustft.evaluation.disagreement import FILE
from robustft.studies import store
from robustft.studies.main import main
from robustft.studies.store import Results
from robustft.studies.study import Entry, Study
from tests.small import SMALL, UNTRAINED, work  # noqa: F401 (a fixture)

ENTRIES = [
    Entry("vanilla_seed-1", (*SMALL, "method=finetune", "seed=1", "disagreement=1"), keep=True, also=FILE),
    Entry("average_seed-1", (*UNTRAINED, "method=wiseft", "checkpoint={vanilla_seed-1}", "seed=1")),
]


def run(folder: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[Results]:
    """What the study summarises."""
    seen: list[Results] = []
    monkeypatch.setattr("sys.argv", ["study.py", "--jobs", "1", *arguments])
    main(str(folder / "study.py"), lambda cfg: entries, lambda _, results: seen.append(results))
    return seen


@pytest.mark.slow
def test_from_start_to_end(work, monkeypatch):  # noqa: F811
    folder = work / "study"
    folder.mkdir()
    monkeypatch.chdir(work)
    with pytest.raises(SystemExit, match=r"2 of 2 runs to go \(vanilla_seed-1 …\): repeat the command"):
        run(folder, ENTRIES, monkeypatch, "--limit", "0")
    (results,) = run(folder, ENTRIES, monkeypatch)
    assert list(results) == ["vanilla_seed-1", "average_seed-1"]
    for name, record in results.items():
        assert record["name"] == name
        assert str(work) not in json.dumps(record)
        assert record["config"]["resume"] is None
    assert results["average_seed-1"]["config"]["checkpoint"] == "vanilla_seed-1/model.safetensors"
    assert [path.name for path in folder.iterdir()] == ["results.jsonl"]
    assert store.read(folder / "results.jsonl") == results
    assert disagreement.parse(results["vanilla_seed-1"]["files"][FILE]).keys() > {0}

    logged = [path.read_text() for path in work.glob("**/run.log")]
    assert len(logged) == 2
    assert all(text.count("evaluating\n") == 1 and "Traceback" not in text for text in logged)

    before = (folder / "results.jsonl").stat().st_mtime_ns
    assert run(folder, ENTRIES, monkeypatch) == [results]
    assert (folder / "results.jsonl").stat().st_mtime_ns == before  # nothing was run

    with pytest.raises(SystemExit, match=r"bad failed: .*lr.*\(log: .*run\.log\)"):
        run(folder, [*ENTRIES, Entry("bad", (*SMALL, "optimizer.lr=-1"))], monkeypatch)
    assert list(store.read(folder / "results.jsonl")) == ["average_seed-1", "vanilla_seed-1"]


def test_a_model_that_is_gone_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(ENTRIES, tmp_path, [])
    study.results["vanilla_seed-1"] = {}
    assert study.to_run() == ENTRIES  # what else it is to leave is not there
    study.results["vanilla_seed-1"] = {"files": {FILE: ""}}
    assert study.to_run() == ENTRIES  # the average needs its model
    study.model("vanilla_seed-1").parent.mkdir(parents=True)
    study.model("vanilla_seed-1").touch()
    assert study.to_run() == ENTRIES[1:]
    study.results["average_seed-1"] = {}
    study.model("vanilla_seed-1").unlink()
    assert study.to_run() == []


def given(folder: Path, **configs: dict) -> None:
    """Results that are there."""
    file = folder / "results.jsonl"
    store.write(file, store.read(file) | {name: {"entry": name, "config": made} for name, made in configs.items()})


@pytest.mark.slow
def test_a_result_that_was_not_kept_in_time_is_not_made_again(work, monkeypatch):  # noqa: F811
    """Killed when the run had ended, and when its result had just been kept."""
    folder = work / "killed"
    folder.mkdir()
    monkeypatch.chdir(work)
    entries = [Entry("vanilla", (*SMALL, "method=finetune"))]

    def killed(*_: object) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_keep", killed)
        with pytest.raises(SystemError):
            run(folder, entries, monkeypatch)
    own = work / "runs" / "studies" / "killed" / "vanilla"
    made = (own / "results.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(Study, "_tidy", killed)
        with pytest.raises(SystemError):
            run(folder, entries, monkeypatch)
    assert "vanilla" in store.read(folder / "results.jsonl")
    run(folder, entries, monkeypatch)
    assert (own / "results.json").stat().st_mtime_ns == made
    assert not (own / "last.ckpt").exists() and not (own / "model.safetensors").exists()
    (folder / "results.jsonl").unlink()  # as one does who wants it made again
    run(folder, entries, monkeypatch)
    assert (own / "results.json").stat().st_mtime_ns != made


def test_runs_that_depend_on_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study.py", "--limit", "0"])
    given(tmp_path, first={"best": "b"})

    def then(cfg, done):
        yield Entry(done["first"]["config"]["best"], ("beta=3",))

    seen: list[Results] = []

    def study() -> None:
        main(
            str(tmp_path / "study.py"), lambda cfg: [Entry("first", ())], lambda _, found: seen.append(found), then=then
        )

    with pytest.raises(SystemExit, match=r"1 of 2 runs to go \(b …\)"):
        study()
    assert seen == []
    given(tmp_path, b={"beta": 3})
    study()
    assert [list(results) for results in seen] == [["first", "b"]]


@pytest.mark.parametrize("said", [{"protocol": {"benchmark": "scenes-1"}}, {}])
def test_results_on_older_pictures_are_refused(tmp_path, said):
    entry = Entry("run", ("method=zeroshot",))
    record = {"entry": "run", "config": {"method": {"name": "zeroshot"}}, "id": {"name": "scenes"}}
    store.write(tmp_path / store.FILE, {"run": {**record, "protocol": {"benchmark": "scenes-2"}}})
    Study([entry], tmp_path, [])
    store.write(tmp_path / store.FILE, {"run": {**record, **said}})
    with pytest.raises(UserError, match=r"run in \S+ was measured on scenes-1, and runs are now on scenes-2"):
        Study([entry], tmp_path, [])


def test_results_of_other_settings_are_refused(tmp_path):
    settings = (
        "mask=object",
        "fill=single",
        "method=kd",
        "beta=0.3",
        "seed=1",
        "teacher={end}",
    )
    made = {
        **{"mask": {"kind": "object"}, "fill": {"kind": "single"}, "method": {"name": "kd"}, "seed": 1},
        **{"beta": 0.3, "teacher": "end/model.safetensors"},
    }
    soup = {"method": {"name": "soup"}, "checkpoints": ["end/model.safetensors"]}
    given(tmp_path, run=made, soup=soup)
    Study([Entry("run", settings), Entry("soup", ("method=soup", "checkpoints=[{end}]"))], tmp_path, [])
    with pytest.raises(UserError, match=r"soup in .*results\.jsonl was not made with"):
        Study([Entry("soup", ("method=soup", "checkpoints=[{a}]"))], tmp_path, [])
    for other in (
        "mask=context",
        "beta=0.31",
        "seed=2",
        "mask.threshold=0.3",
        "teacher={start}",
    ):
        with pytest.raises(UserError, match=r"run in .*results\.jsonl was not made with .*: delete its line"):
            Study([Entry("run", (*settings, other))], tmp_path, [])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("data.train_images=400", r"data\.train_images=400 \(there: 4000\)"),
        ("trainer.max_epochs=1", r"trainer\.max_epochs=1 \(there: 4\)"),
        ("retain.photos=DIR", r"retain\.photos\.path=DIR \(there: null\)"),
        ("data=folders", r"data\.train=photos \(there: null\) and \d+ other settings"),
    ],
)
def test_results_with_other_settings_for_all_are_refused(tmp_path, typed, said):
    """Their numbers would stand in a table that says nothing of it."""
    job = compose.composed([["method=finetune", "trainer.max_epochs=4", "data.train_images=4000"]])[0]
    identity.resolve(job, sweep=True)
    given(tmp_path, run=plain(job))
    entries, same = [Entry("run", ("method=finetune",))], ["trainer.max_epochs=4", "data.train_images=4000"]
    assert Study(entries, tmp_path, same).to_run() == []
    assert Study(entries, tmp_path, [*same, "data.num_workers=1"]).to_run() == []  # how, not what
    more = [*same, typed] if typed.startswith("retain") else ["data.train=photos", typed] if "=folders" in typed else [
        *(one for one in same if one.partition("=")[0] != typed.partition("=")[0]), typed
    ]  # fmt: skip
    with pytest.raises(UserError, match=rf"run in \S+ was not made with {said}: delete its line"):
        Study(entries, tmp_path, more)
    with pytest.raises(UserError, match="was not made with"):  # nor are they those of a plain command
        Study(entries, tmp_path, [])


def test_results_with_more_than_is_asked_for_are_refused(tmp_path):
    """They would pass for those of plain fine-tuning, or of the shifts that are asked for."""
    for more in ("constraint=l2sp", "data.shifts.sketch=DIR"):
        typed = ["method=finetune", "data=folders", "data.train=photos"]
        job = compose.composed([[*typed, more]])[0]
        identity.resolve(job, sweep=True)
        given(tmp_path, run=plain(job))
        Study([Entry("run", (*typed, more))], tmp_path, [])
        with pytest.raises(
            UserError, match=rf"was not made with {re.escape(more.partition('=')[0])}\S*=null \(there: "
        ):
            Study([Entry("run", tuple(typed))], tmp_path, [])


def test_what_a_small_set_has_settled_is_no_other_setting(tmp_path):
    """A record says which batch and epochs the data chose in the place of the recipe's."""
    typed = ["method=finetune", "data=folders", "data.train=photos"]
    job = compose.composed([typed])[0]
    identity.resolve(job, sweep=True)
    made = plain(job)
    made["data"]["batch_size"], made["trainer"]["max_epochs"] = 16, 25
    record = {
        "entry": "run",
        "config": made,
        "protocol": {"settled": {"data.batch_size": 16, "trainer.max_epochs": 25}},
    }
    store.write(tmp_path / store.FILE, {"run": record})
    assert Study([Entry("run", tuple(typed))], tmp_path, []).to_run() == []
    for other in ("data.batch_size=32", "trainer.max_epochs=10"):  # typed: nothing is settled
        with pytest.raises(UserError, match=f"was not made with {other} "):
            Study([Entry("run", (*typed, other))], tmp_path, [])
    store.write(tmp_path / store.FILE, {"run": {**record, "protocol": {}}})
    with pytest.raises(UserError, match="was not made with"):
        Study([Entry("run", tuple(typed))], tmp_path, [])


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--limit", "-1"], ["--limit", "nan"]])
def test_numbers_that_cannot_be(work, monkeypatch, arguments):  # noqa: F811
    with pytest.raises(SystemExit, match="error: --jobs=.* give at least one job"):
        run(work, ENTRIES, monkeypatch, *arguments)


def test_settings_and_options_may_be_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study.py", "seed=3", "--limit", "0", "beta=2"])
    with pytest.raises(SystemExit, match="1 of 1 run to go"):
        main(str(tmp_path / "study.py"), lambda cfg: [Entry(f"{cfg.seed}-{cfg.beta}", ())], lambda *_: None)


def test_folders_of_settings():
    few, many = ["model=vitb32", "data.root=a/b"], [f"trainer.some_setting_{n}=1" for n in range(20)]
    assert re.fullmatch(r"model-vitb32_data.root-a-b_[0-9a-f]{6}", naming.settings_name(few))
    assert naming.settings_name(["model=vitb32", "beta=1e-3"]) == "model-vitb32_beta-1e-3"
    alike = ("photos", "/photos", "photos/", "[photos]", "'photos'", ".photos", "-photos", "pho tos", "pho-tos")
    assert len({naming.settings_name([f"data.train={one}"]) for one in alike}) == len(alike)
    names = {naming.settings_name(settings) for settings in (many, many[:-1], many[1:])}
    assert len(names) == 3 and max(map(len, names)) < 200


def test_what_a_study_varies_cannot_be_typed(tmp_path):
    entries = [Entry("run", ("seed=1", "optimizer.lr=0.1"))]
    with pytest.raises(UserError, match="seed is what this study varies"):
        Study(entries, tmp_path, ["seed=7"])
    study = Study(entries, tmp_path, ["optimizer.lr=1", "data.eval_images=8"])  # entries scale that
    assert study.overrides(entries[0])[-4:] == ["optimizer.lr=1", "data.eval_images=8", "seed=1", "optimizer.lr=0.1"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", "3"])
def test_a_damaged_file_of_results(tmp_path, line):
    given(tmp_path, run={})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=r"results\.jsonl, line 2: .* Expected a result of this study"):
        Study([Entry("run", ())], tmp_path, [])


def test_results_that_another_process_leaves_meanwhile_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustft.studies.study.execute", stand_in)
    study = Study([Entry("good", ())], tmp_path, [])
    given(tmp_path, other={})
    monkeypatch.setattr("robustft.studies.study.workers", lambda jobs: contextlib.nullcontext(Inline()))
    study.finish(1, math.inf)
    assert list(store.read(tmp_path / "results.jsonl")) == ["good", "other"]


@pytest.mark.slow
def test_one_failure_does_not_stop_the_others(tmp_path, monkeypatch):
    """With a stand-in for the runs themselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustft.studies.study.execute", stand_in)
    entries = [
        Entry("bad", ("seed=1",), keep=True),
        Entry("child", ("teacher={bad}",)),
        Entry("good", ("seed=2",)),
        Entry("worse", ("seed=3",), keep=True),
    ]
    with pytest.raises(UserError, match=r"2 runs failed:\nbad failed: no .*\nworse failed: no "):
        Study(entries, tmp_path, []).finish(1, math.inf)
    assert list(store.read(tmp_path / "results.jsonl")) == ["good"]


def stand_in(folder: str, settings: list[str]) -> str | None:
    if Path(folder).name != "good":
        return "no"
    Path(folder).mkdir(parents=True)
    (Path(folder) / "results.json").write_text('{"config": {}}')
    return None


def test_two_at_the_same_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study([Entry("run", ())], tmp_path, [])
    with locked(study.work / "study"), pytest.raises(UserError, match="another process is at work on this study"):
        study.finish(1, math.inf)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--steps 5", "--steps=5 does nothing without --cost"),
        ("--cost --limit 5", "--limit=5.0 does nothing with --cost"),
        ("--cost --jobs 2", "--jobs=2 does nothing with --cost"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path, monkeypatch, typed, expected):
    monkeypatch.setattr("sys.argv", ["study.py", *typed.split()])
    with pytest.raises(SystemExit, match=expected):
        main(str(tmp_path / "study.py"), lambda cfg: [], lambda folder, results: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("entries", "typed", "expected"),
    [
        (
            [Entry("probe", ("method=linear_probe", "beta=3"))],
            [],
            "probe: beta=3 does nothing with method=linear_probe",
        ),
        ([Entry("a", ("method=finetune",)), Entry("b", ("method=lpft",))], ["beta=3"], "beta=3 does nothing .* any of"),
        (
            [Entry("a", ("mask=random", "mask.threshold=0.3"))],
            [],
            "a: mask.threshold=0.3 does nothing with mask=random",
        ),
        ([Entry("a", ("method=zeroshot",))], ["optimizer.betas=[0.9,0.99]"], "optimizer.beta2"),
    ],
)
def test_settings_that_do_nothing_are_refused(tmp_path, entries, typed, expected):
    with pytest.raises(UserError, match=expected):
        Study(entries, tmp_path, typed)


def test_entries_that_are_the_same_run_are_run_once(tmp_path, monkeypatch):
    """With a stand-in for the runs themselves; what is said of models and files of a twin is so too."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def stand_in(folder: str, settings: list[str]) -> None:
        calls.append(Path(folder).name)
        Path(folder).mkdir(parents=True)
        config: dict = {"fill": {"kind": "single"}}
        config["seed"] = 0 if Path(folder).name == "child" else 1
        if Path(folder).name == "child":
            config["method"] = {"name": "evaluate"}
            config["checkpoint"] = str(tmp_path / "runs" / "studies" / tmp_path.name / "twin" / "model.safetensors")
        record = {"name": Path(folder).name, "config": config, "checkpoint": "model"}
        (Path(folder) / "results.json").write_text(json.dumps(record))
        (Path(folder) / "model.safetensors").touch()

    monkeypatch.setattr("robustft.studies.study.execute", stand_in)
    monkeypatch.setattr("robustft.studies.study.workers", lambda jobs: contextlib.nullcontext(Inline()))
    first, twin = Entry("first", ("seed=1",)), Entry("twin", ("seed=1", "fill=single"), keep=True)
    entries = [first, twin, Entry("child", ("method=evaluate", "checkpoint={twin}"))]
    study = Study(entries, tmp_path, [])
    assert study.twin_of == {"first": "first", "twin": "first", "child": "child"}
    assert study.overrides(entries[2])[-1].endswith("twin/model.safetensors")
    assert [entry.name for entry in study.to_run()] == ["first", "child"]
    results = study.finish(1, math.inf)
    assert calls == ["first", "child"] and {name: record["name"] for name, record in results.items()} == {
        name: name for name in ("first", "twin", "child")
    }
    assert study.model("twin").is_file() and not study.model("first").exists()  # kept for the twin alone
    store.write(study.file, {name: record for name, record in results.items() if name != "twin"})
    again = Study(entries, tmp_path, [])
    assert list(again.finish(1, math.inf)) == ["first", "twin", "child"] and calls == ["first", "child"]


class Inline:
    """Runs in this process what is submitted."""

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future
