"""Imports without the garbage collector, which is as it was afterwards."""

import gc
import sys

import pytest

from robustft.common import imports


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "large_module.py").write_text("import gc\nenabled, kept = gc.isenabled(), [[] for _ in range(1000)]\n")
    (tmp_path / "broken_module.py").write_text("import nothing_like_that\n")
    yield "large_module"
    sys.modules.pop("large_module", None)
    gc.unfreeze()
    gc.enable()


def test_what_is_imported_is_never_looked_at_again(module):
    before = gc.get_freeze_count()
    made = imports.quickly(module)
    assert not made.enabled and gc.isenabled() and gc.get_freeze_count() > before + len(made.kept)
    frozen = gc.get_freeze_count()
    kept = [[] for _ in range(1000)]
    assert imports.quickly(module) is made  # what came later may be garbage one day
    assert gc.get_freeze_count() <= frozen and kept


def test_it_is_as_it_was(module):
    with pytest.raises(ModuleNotFoundError):
        imports.quickly("broken_module")
    assert gc.isenabled()
    gc.disable()
    imports.quickly(module)
    assert not gc.isenabled()


def test_a_script_is_one_module_or_none(tmp_path):
    file = tmp_path / "study.py"
    file.write_text("from dataclasses import dataclass\n\n\n@dataclass\nclass One:\n    two: 'int' = 2\n")
    assert imports.script(file) is imports.script(tmp_path / "." / "study.py")
    assert imports.script(file).One().two == 2
    broken = tmp_path / "broken.py"
    broken.write_text("raise KeyError\n")
    for _ in range(2):  # what failed is not taken for imported
        with pytest.raises(KeyError):
            imports.script(broken)
