"""docs/own-data.md is what happens: its commands run, and print what it says, but for the numbers."""

from pathlib import Path

import pytest

from tests import walkthrough
from tests.small import ROOT
from tests.walkthrough import Command, File

PAGE = ROOT / "docs" / "own-data.md"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "here"
    folder.mkdir()
    page = PAGE.read_text("utf-8")
    for step in walkthrough.steps(page):
        if isinstance(step, File):
            (folder / step.name).write_text(step.content, "utf-8")
            continue
        status, printed = walkthrough.run(step, folder)
        assert status == 0, "\n".join([step.text, *printed])
        found = walkthrough.matched(step.said, printed)
        missing = [line for line, made in zip(step.said, found, strict=True) if made is None]
        assert not missing, "\n".join([step.text, *printed])
    for shown, source in walkthrough.pictures(page):
        assert (PAGE.parent / shown).is_file() and list(folder.glob(source)), (shown, source)


def test_what_a_page_does():
    console = "```console\n$ one \\\n    two\nx 1\n…\ny\n$ three\n```\n"
    page = f"a\n{console}```python\n# b.py\nprint(1)\n```\n```python\n2\n```\n"
    assert list(walkthrough.steps(page)) == [
        Command("one two", ["x 1", "…", "y"], 4),
        Command("three", [], 8),
        File("b.py", "# b.py\nprint(1)\n"),
    ]
    lines = page.splitlines()
    assert lines[4] == "x 1" and lines[7] == "$ three"  # lines are counted from 0: first is where the output begins


def test_what_is_printed_is_found_in_its_order():
    printed = ["start", "ID  71.5%  │", "took 3 s", "ID  80.0%  │", "end"]
    assert walkthrough.matched(["ID 70.0% │", "…", "ID 71% │"], printed) == [printed[1], "…", printed[3]]
    assert walkthrough.matched(["end", "start"], printed) == ["end", None]
    assert walkthrough.matched(["ID 70.0 │"], printed) == [None]
