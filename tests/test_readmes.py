"""The tables and numbers of the READMEs are those of the result files, and so are the studies' own tables."""

import csv
import re
from pathlib import Path

import pytest

from robustft.common.imports import script
from robustft.studies import store
from tests.small import ROOT

readme = script(ROOT / "experiments" / "readme.py")


def test_tables_and_numbers_are_those_of_the_result_files():
    assert list(readme.faults(change=False)) == []


def test_what_differs_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    before = (ROOT / "README.md").read_text("utf-8")
    changed = readme.TABLES["speed_vitb32"]().replace("6.56", "6.57")
    monkeypatch.setitem(readme.TABLES, "speed_vitb32", lambda: changed)
    monkeypatch.setattr(readme, "said", lambda: iter([("README.md", "it gains 99.9 points")]))
    monkeypatch.setattr("sys.argv", ["readme.py", "--check"])
    assert readme.main() == 1
    said = capsys.readouterr().out
    assert "README.md: the table speed_vitb32 differs from the result files" in said
    assert "README.md does not say: it gains 99.9 points" in said
    assert (ROOT / "README.md").read_text("utf-8") == before


def test_a_study_without_results_is_said_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "README.md"
    page.write_text("<!-- table: seeds -->\n\n| a | b |\n\n<!-- end of table -->\n", "utf-8")
    monkeypatch.setattr(readme, "pages", lambda: [page])
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "said", lambda: iter(()))
    monkeypatch.setattr(readme, "NEEDS", {"seeds": "no/such/file"})
    assert "README.md: the table seeds differs from the result files" in list(readme.faults(change=False))
    list(readme.faults(change=True))
    assert page.read_text("utf-8") == f"<!-- table: seeds -->\n\n{readme.NOT_YET}\n\n<!-- end of table -->\n"


STUDIES = sorted(
    path.parent.name for path in (ROOT / "experiments").glob("*/study.py") if (path.parent / store.FILE).exists()
)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_s_tables_are_those_of_its_results(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = ROOT / "experiments" / study
    monkeypatch.setattr("robustft.report.plot.scatter", lambda *_: [])
    module = readme.module(study)
    if hasattr(module, "draw"):
        monkeypatch.setattr(module, "draw", lambda *_: None)
    module.summarise(tmp_path, store.read(folder / store.FILE))
    made = [path for path in tmp_path.glob("*.*") if path.suffix in (".md", ".tex", ".csv")]
    assert made
    for path in made:
        stored = folder / path.name
        if path.suffix == ".csv":
            with path.open(newline="") as ours, stored.open(newline="") as theirs:
                for ours_row, theirs_row in zip(csv.reader(ours), csv.reader(theirs), strict=True):
                    assert list(map(number, ours_row)) == [near(number(cell)) for cell in theirs_row]
        else:
            assert path.read_text("utf-8") == stored.read_text("utf-8"), path.name


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def near(value: float | str) -> object:
    return value if isinstance(value, str) else pytest.approx(value, abs=1e-9)


def test_the_page_of_methods_has_them_all():
    """And calls them as reports do."""
    from omegaconf import open_dict

    from robustft.cli.display import display
    from robustft.cli.sources import groups
    from tests.small import composed

    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE)[1:]
    assert {row[0].split()[0] for row in rows} == set(groups()["method"])
    for typed, label in rows:
        name, *more = typed.split()
        cfg = composed(f"method={name}", *more)
        with open_dict(cfg):
            assert display(cfg)["label"] == label.strip(), typed
