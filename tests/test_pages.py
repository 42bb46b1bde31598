"""The commands of docs/retention.md and docs/compare.md: the embedded ones are run, the others checked."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from omegaconf import open_dict
from safetensors import safe_open

from robustft.cli import compose, plan, sources
from robustft.cli.main import run_in
from robustft.studies import compare
from tests.small import ROOT, SMALL
from tests.test_compare import CONFIG, MINE

FEW = [s for s in SMALL if not s.startswith("model.pretrained")]


def commands(page: str) -> list[list[str]]:
    """What stands behind `robustft` on the lines of a page's blocks."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("robustft ")]
    return [shlex.split(line)[1:] for line in lines]


def test_pages_call_it_as_it_is_installed() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text("utf-8")
        typed = [line for line in text.splitlines() if line.strip().removeprefix("$ ").startswith("python run.py")]
        assert not typed, f"{page.name}: {typed}"
        assert text.count("python run.py") <= 1, page.name  # where it is said that the two are one


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    for name in ("photos", "drawings", "pets", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "birds.csv").write_text("path,label,split\n")
    return tmp_path


@pytest.mark.slow
def test_the_page_of_retention(place: Path) -> None:
    found = commands("retention.md")
    assert len(found) == 5
    for typed in found:
        if "model=vitb32" in typed:
            (arguments,) = [plan.make_plan(typed).arguments]
            assert any(argument.startswith("++retain.") for argument in arguments)
            continue
        folder = place / str(len(list(place.iterdir())))
        cfg = compose.compose_first(compose.parse([*FEW, *typed]))
        with open_dict(cfg):
            cfg.pop("hydra")
        record = run_in(cfg, folder, typed)
        assert record is not None
        asked = ["context"] if "retain.style=false" in typed else ["context", "style"]
        assert list(record["retention"]) == asked
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert "text" in file.metadata()
    python = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "retention.md").read_text("utf-8"), re.DOTALL)
    assert python is not None
    made: dict = {}
    exec(python[1].replace('"run"', repr(str(folder))), made)
    assert made["clip"].visual is None and made["model"].architecture.text.pretrained == "embedded"


def test_the_page_of_compare(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_added", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (place / "my" / "conf" / "method").mkdir(parents=True)
    (place / "my" / "mine.py").write_text(MINE)
    (place / "my" / "conf" / "method" / "mine.yaml").write_text(CONFIG.replace("name: louder", "name: mine"))
    found = commands("compare.md")
    assert len(found) == 4 and all(first == "compare" for first, *_ in found)
    dials = []
    for _, *typed in found:
        given = compare.parse(typed)
        if given.config_dir:
            sources.add(given.config_dir)
        methods = [word for word in given.words if "=" not in word.partition(",")[0]]
        candidates, _ = compare.plan(methods, [word for word in given.words if word not in methods])
        dials.append([(one.typed, one.dial) for one in candidates])
    assert dials[0] == dials[1] == [("finetune", None), ("counterfactual", "beta"), ("wiseft", "alpha")]
    assert dials[2] == [("counterfactual", "beta"), ("counterfactual,mask=none", "beta")]
    assert dials[3] == [("finetune", None), ("mine", "method.gain")]
