"""A study runs what has no result, keeps results, hands models on, and goes on where it stopped."""

import json
from pathlib import Path

import pytest

from robustft.disagreement import FILE
from robustft.study import Entry, Results, Study, main
from tests.small import SMALL, work  # noqa: F401 (a fixture)

ENTRIES = [
    Entry("vanilla_seed-1", (*SMALL, "method=finetune", "seed=1", "disagreement=1"), keep=True, also=FILE),
    Entry("average_seed-1", (*SMALL, "method=wiseft", "checkpoint={vanilla_seed-1}", "seed=1")),
]


def run(folder: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[Results]:
    """What the study summarises."""
    seen: list[Results] = []
    monkeypatch.setattr("sys.argv", ["study.py", "--jobs", "1", *arguments])
    main(str(folder / "study.py"), lambda cfg: entries, lambda _, results: seen.append(results))
    return seen


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
    assert results["average_seed-1"]["config"]["checkpoint"] == "vanilla_seed-1/model.safetensors"
    kept = {path.name for path in (folder / "results").iterdir()}
    assert kept == {"vanilla_seed-1.json", "vanilla_seed-1.csv", "average_seed-1.json"}

    before = {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    assert run(folder, ENTRIES, monkeypatch) == [results]
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()} == before  # nothing was run

    with pytest.raises(SystemExit, match=r"bad failed: .*lr.*\(log: .*run\.log\)"):
        run(folder, [*ENTRIES, Entry("bad", (*SMALL, "optimizer.lr=-1"))], monkeypatch)
    assert not (folder / "results" / "bad.json").exists()


def test_a_model_that_is_gone_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(ENTRIES, tmp_path, [])
    study.result(ENTRIES[0]).parent.mkdir()
    study.result(ENTRIES[0]).write_text("{}")
    study.result(ENTRIES[0]).with_suffix(".csv").touch()
    assert study.to_run() == ENTRIES  # the average needs its model
    study.model("vanilla_seed-1").parent.mkdir(parents=True)
    study.model("vanilla_seed-1").touch()
    assert study.to_run() == ENTRIES[1:]
    study.result(ENTRIES[1]).write_text("{}")
    study.model("vanilla_seed-1").unlink()
    assert study.to_run() == []


def test_runs_that_depend_on_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study.py", "--limit", "0"])
    results = tmp_path / "results"
    results.mkdir()
    (results / "first.json").write_text('{"best": "b"}')

    def then(cfg, done):
        yield Entry(done["first"]["best"], ())

    seen: list[Results] = []

    def study() -> None:
        main(
            str(tmp_path / "study.py"), lambda cfg: [Entry("first", ())], lambda _, found: seen.append(found), then=then
        )

    with pytest.raises(SystemExit, match=r"1 of 2 runs to go \(b …\)"):
        study()
    assert seen == []
    (results / "b.json").write_text("{}")
    study()
    assert seen == [{"first": {"best": "b"}, "b": {}}]
