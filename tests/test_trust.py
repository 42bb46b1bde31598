"""What the folder of a run, which may come from anybody, names: followed if its user names it too, never imported."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from robustft.cli import plan, resuming, sources
from robustft.common.errors import UserError
from robustft.deploy.again import data_of, model_settings
from robustft.deploy.source import find
from tests.small import SMALL, do, work  # noqa: F401 (a fixture)

EVIL = """from robustft.data.scenes.datamodule import ScenesData
open({mark!r}, "w").close()
class Data(ScenesData):
    pass
"""


@pytest.fixture(scope="module")
def finished(work: Path) -> Path:  # noqa: F811
    do(work / "one", "method=finetune", "trainer.max_steps=2")
    return work / "one"


@pytest.fixture
def foreign(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has not finished, as somebody sends it: beside it a module that leaves a mark where it is imported."""
    monkeypatch.setattr(sources, "_added", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model.safetensors", "last.ckpt", "config.yaml", "overrides.yaml"):
        (folder / name).write_bytes((finished / name).read_bytes())
    (folder / "overrides.yaml").write_text(json.dumps([*SMALL, "method=finetune", "trainer.max_steps=2"]))
    (tmp_path / "conf").mkdir()
    (tmp_path / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
    (folder / "config_dir.txt").write_text(f"{tmp_path / 'conf'}\n")
    yield folder
    assert ("evil" in sys.modules) == (tmp_path / "mark").exists()
    sys.modules.pop("evil", None)


def change(folder: Path, **parts: dict) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name, changes in parts.items():
        config[name] |= changes
    (folder / "config.yaml").write_text(json.dumps(config))


def test_a_class_of_data_is_imported_where_its_user_has_named_it(foreign: Path, tmp_path: Path) -> None:
    change(foreign, data={"_target_": "evil.Data"})
    with pytest.raises(UserError, match=r"data\._target_=evil\.Data is no code of robustft's.*--config-dir DIR"):
        data_of(find(foreign))
    assert not (tmp_path / "mark").exists()
    assert type(data_of(find(foreign, str(tmp_path / "conf")))).__name__ == "Data"
    sources._added.clear()  # another command, later
    assert type(data_of(find(foreign))).__name__ == "Data"


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": {"_target_": "evil.Data"}},
        {"tokenizer": {"_target_": "robustft.common.files.write", "path": "out", "text": ""}},
        {"pretrained": "${oc.env:HOME}"},
    ],
)
def test_no_other_code_and_no_references_are_followed(changes: dict, foreign: Path, tmp_path: Path) -> None:
    change(foreign, model=changes)
    with pytest.raises(UserError, match="not followed"):
        model_settings(find(foreign))
    assert not (tmp_path / "mark").exists()


def test_what_it_was_typed_with_does_not_run_code(foreign: Path, tmp_path: Path) -> None:
    typed = yaml.safe_load((foreign / "overrides.yaml").read_text())
    (foreign / "config_dir.txt").unlink()
    plan.make_plan([f"resume={foreign}"])
    for line in ("data._target_=evil.Data", "model.tokenizer={_target_:evil.Data}", "hydra.job.env_set.LD_PRELOAD=x"):
        (foreign / "overrides.yaml").write_text(json.dumps([*typed, line]))
        with pytest.raises(UserError, match="which may run code.*type it again"):
            plan.make_plan([f"resume={foreign}"])
    assert not (tmp_path / "mark").exists()


def test_a_folder_of_configs_is_followed_once_it_was_named(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which nobody has named here.*--config-dir"):
        plan.make_plan([f"resume={foreign}"])
    plan.make_plan([f"resume={foreign}", "--config-dir", str(tmp_path / "conf")])
    sources._added.clear()
    assert f"--config-dir={tmp_path / 'conf'}" in plan.make_plan([f"resume={foreign}"]).arguments


@pytest.mark.parametrize("text", ["- &a [x, x]\n- *a\n", "{a: b}", "[1, 2]", "[", "- '['\n- beta=1]"])
def test_settings_that_cannot_be_read(text: str, foreign: Path) -> None:
    (foreign / "overrides.yaml").write_text(text)
    (foreign / "config_dir.txt").unlink()
    with pytest.raises(UserError) as error:
        plan.make_plan([f"resume={foreign}"])
    assert "\n" not in str(error.value)


def test_aliases_do_not_make_a_config_endless(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 64))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert resuming.saved_config(tmp_path) is None


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 20_000, "- " * 20_000], ids=["lists", "settings", "items"])
@pytest.mark.timeout(60)
def test_levels_do_not_make_a_config_endless(text: str, tmp_path: Path) -> None:
    for name in ("config.yaml", "overrides.yaml"):
        (tmp_path / name).write_text(text)
    assert resuming.saved_config(tmp_path) is None
    with pytest.raises(UserError, match="cannot be read"):
        resuming.saved_overrides(tmp_path)
