"""Importing what is large, quickly, and scripts that are in no package."""

import gc
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def quickly(name: str) -> ModuleType:
    """Import a module without looking for garbage meanwhile, and never look at what came with it: torch and the others
    are millions of objects that stay. A sixth of the time of imports goes to that.

    Example:
        >>> quickly("json").dumps([])
        '[]'
    """
    if name in sys.modules:  # what is there by now may be garbage one day
        return sys.modules[name]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        module = import_module(name)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
    return module


def script(file: Path) -> ModuleType:
    """Import a script that is in no package: a study's file, say. One file is one module.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: its name does not end in .py.

    Example:
        >>> script(Path("nowhere/study.py"))
        Traceback (most recent call last):
        FileNotFoundError: ...
    """
    name = "script " + str(file.resolve().with_suffix(""))
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file by its name")
    module = sys.modules[name] = module_from_spec(spec)  # where its dataclasses look
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
