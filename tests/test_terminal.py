"""Tables fit the terminal, whole, and say what they say in the letters it has."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from robustft.common import terminal
from robustft.data.check import check
from robustft.evaluation.summary import percent, print_table
from robustft.report.__main__ import main as report
from robustft.studies import store
from tests.data.conftest import make_data, root  # noqa: F401 (a fixture)
from tests.small import ROOT, SMALL, UNTRAINED

STUDY = ROOT / "experiments" / "seeds"
WIDTHS = [60, 80, 120, None]
NUMBER = re.compile(r"[−+]?\d+\.\d(?: ± \d+\.\d| \[[−+]?\d+\.\d, [−+]?\d+\.\d\])?")

CELL = re.compile(r"[−+]?\d+\.\d(?: ± \d+\.\d| \[[−+]?\d+\.\d, [−+]?\d+\.\d\])")


@pytest.fixture(params=WIDTHS, ids=str)
def width(request, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.delenv("COLUMNS", raising=False)
    if request.param is not None:
        monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param or 10_000


def assert_whole(text: str, width: int) -> None:
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text and "..." not in text


def test_the_report_has_every_number(width: int, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("robustft.report.plot.scatter", lambda *_: [])
    arguments = ["--baseline", "vanilla", "--baseline", "distillation_no-mask_beta-1_seed-1", "--out", str(tmp_path)]
    assert report([str(STUDY / store.FILE), *arguments]) == 0
    printed = capsys.readouterr().out.partition("Mean ±")[0]
    assert_whole(printed, width)
    given = (tmp_path / "comparison.md").read_text("utf-8").partition("Mean ±")[0]
    assert sorted(CELL.findall(printed)) == sorted(CELL.findall(given)) and len(CELL.findall(given)) > 60
    for word in ("V2", "Sketch", "ObjectNet", "OOD avg", "seeds", "object mask"):
        assert word in printed
    if width < 120:  # what matters first comes first
        assert printed.index("OOD avg") < printed.index("Δ") < printed.index("ObjectNet")


@pytest.mark.parametrize("partial", [False, True])
def test_a_run_s_table_has_every_number(width: int, partial: bool, capsys: pytest.CaptureFixture[str]):
    record = json.loads((ROOT / "experiments" / "demo" / "results.json").read_text("utf-8")) | {"partial": partial}
    print_table(record)
    printed = capsys.readouterr().out
    assert_whole(printed, width)
    assert len(re.findall(r"\d\d\.\d", printed.partition("Further metrics")[0])) == 16
    assert ("Partial: 2,000 images" in " ".join(printed.split())) == partial
    both = [percent(block["ood_avg"]) for block in (record["zeroshot"], record)]
    upright = any(line.startswith("│ OOD avg") and all(x in line for x in both) for line in printed.splitlines())
    assert upright == (width < 93)


def test_the_table_of_the_data_is_whole(root: Path, width: int, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    check(make_data(root))
    printed = capsys.readouterr().out
    assert_whole("\n".join(line for line in printed.splitlines() if str(root) not in line), width)
    for word in ("imagenet_sketch", "objectnet", "1,281,167", "18,574"):
        assert word in printed


def test_a_study_s_markdown_is_whole(width: int, capsys: pytest.CaptureFixture[str]):
    text = (STUDY / "matched.md").read_text("utf-8")
    terminal.print_markdown(terminal.console(), text)
    printed = capsys.readouterr().out
    tables = "\n".join(line for line in printed.splitlines() if line[:1] in "│┃")
    assert_whole(tables, width)
    given = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert set(NUMBER.findall(tables)) == set(NUMBER.findall(given))  # those in names are in every block


def test_wide_letters_and_long_names_fit(width: int):
    file = io.StringIO()
    table = Table("name", "number")
    table.add_row("猫" * 40, "12.3 ± 0.4")
    table.add_row("x" * 150, "45.6 ± 0.7")
    terminal.print_table(Console(file=file, width=width), table)
    assert_whole(file.getvalue(), width)
    assert "12.3 ± 0.4" in file.getvalue() and file.getvalue().count("x") == 150


COMMANDS = {
    "report": ["-m", "robustft.report", "results.jsonl", "--baseline", "vanilla"],
    "run": [str(ROOT / "run.py"), *UNTRAINED, "method=zeroshot"],
    "data": [str(ROOT / "run.py"), *SMALL, "check=data"],
    "study": ["study.py"],
    "mistake": [str(ROOT / "run.py"), "beta=β"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "encoding"), [*((name, "ascii") for name in COMMANDS), ("report", "latin-1")])
def test_letters_that_the_terminal_lacks_are_written_out(tmp_path: Path, name: str, encoding: str):
    for file in ("results.jsonl", "study.py"):
        shutil.copy(ROOT / "experiments" / "seeds" / file, tmp_path)
    environment = {"PYTHONIOENCODING": encoding, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"ROBUSTFT_CACHE": str(tmp_path / "cache"), "LANG": "C"}
    done = subprocess.run(
        [sys.executable, *COMMANDS[name]], cwd=tmp_path, env=os.environ | environment, capture_output=True, timeout=300
    )
    said = (done.stdout + done.stderr).decode(encoding)
    assert done.returncode == (name == "mistake"), said
    assert "UnicodeEncodeError" not in said and "Traceback" not in said and "Logging error" not in said
    if name in ("report", "study"):
        assert "93.0 +- 0.4" in said and "beta=0.3" in said and "-3.2 [-4.0, -2.4]" in said


@pytest.mark.parametrize(
    ("text", "ascii_text"), [("β=3 ±0.1 −2", "beta=3 +-0.1 -2"), ("Köln – 猫", "Koln - ?"), ("a", "a")]
)
def test_plain_letters(text: str, ascii_text: str):
    assert terminal.plain(text) == ascii_text
