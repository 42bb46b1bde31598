"""The points of a command at which it can be made to end: files put in place or taken away, and changes of phase.

`install` puts them into a process that the environment asks for:

    POINTS_FILE   every point is written to this file as it is passed, a line each: ``process<TAB>name #occurrence``
    POINTS_AT     the name of the one at which POINTS_SIGNAL is sent, by the first process that comes to it, once
    POINTS_TO     whom it is sent to: self (default), group (all of the process group) or leader (its first process)
    POINTS_RANK_n further variables of the process n of a run, in JSON
    POINTS_SHARD  images of a shard of prepared copies, so that a few images make several

Occurrences are counted in each process. Imports nothing but the standard library: it is to run before all else.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

# What is called at a change of phase: module, or module:class, and names in it.
PHASES = {
    "robustft.cli.main": ("run_in",),
    "robustft.experiment": (
        *("run", "make_loggers", "zeroshot_scores", "start_over", "train_method", "finish", "evaluate"),
        *("save_classifier", "write_predictions", "gallery", "log_results", "write_results", "print_table"),
    ),
    "robustft.training.checkpoints:KeepState": (
        *("on_train_start", "on_train_batch_end", "on_validation_batch_end", "on_validation_end"),
        *("on_train_epoch_end", "on_train_end", "_save"),
    ),
    "robustft.training.checkpoints:KeepBest": ("on_validation_end", "restore"),
    "robustft.data.prepare": ("_make_all", "_make", "_write_shard"),
    "robustft.deploy.predict": ("run",),
    "robustft.deploy.export": ("logits_of", "compare"),
    "robustft.studies.study:Study": ("_keep", "_add", "_share"),
    "robustft.studies.workers": ("execute",),
}
FILES = ("replace", "rename", "unlink", "rmdir")  # of os
_passed: Counter[str] = Counter()


def install() -> None:
    """Make this process pass points, if the environment asks for it."""
    if not os.environ.get("POINTS_FILE"):
        return
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    os.environ.update(json.loads(os.environ.get(f"POINTS_RANK_{rank}", "{}")))
    for name in FILES:
        setattr(os, name, _of_files(name, getattr(os, name)))
    modules = {place.partition(":")[0] for place in PHASES}
    for name in modules & sys.modules.keys():
        _patch(sys.modules[name])
    sys.meta_path.insert(0, _Finder(modules - sys.modules.keys()))


def passed(name: str) -> None:
    """Come to a point."""
    _passed[name] += 1
    point = f"{name} #{_passed[name]}"
    with open(os.environ["POINTS_FILE"], "a") as file:
        file.write(f"{os.getpid()}\t{point}\n")
    if point == os.environ.get("POINTS_AT") and _is_first():
        number = int(os.environ["POINTS_SIGNAL"])
        to = os.environ.get("POINTS_TO", "self")
        if to == "group":
            os.killpg(0, number)
        else:
            os.kill(os.getpid() if to == "self" else os.getpgrp(), number)


def _is_first() -> bool:
    """Whether nobody was at the point before."""
    try:
        os.close(os.open(os.environ["POINTS_FILE"] + ".reached", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _of_files(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def changed(path: Any, *rest: Any, **options: Any) -> Any:
        if not _is_ours(sys._getframe(1)):
            return original(path, *rest, **options)
        what = f"{name} {_readable(rest[0] if name in ('replace', 'rename') else path)}"
        passed(f"before {what}")
        result = original(path, *rest, **options)
        passed(f"after {what}")
        return result

    return changed


def _is_ours(frame: Any) -> bool:
    """Whether the product changes a file: not a library, and not the locks, which lose nothing."""
    while frame is not None and frame.f_globals.get("__name__") == "pathlib":
        frame = frame.f_back
    name = "" if frame is None else frame.f_globals.get("__name__", "")
    return name.startswith("robustft.") and name != "robustft.common.locks"


def _readable(path: Any) -> str:
    """A path from the working directory, without what differs from process to process."""
    return re.sub(r"\.[\w.-]+\+\d+\.partial", "partial", os.path.relpath(path))


def _patch(module: ModuleType) -> None:
    for place, names in PHASES.items():
        owner, _, kind = place.partition(":")
        if owner != module.__name__:
            continue
        where = getattr(module, kind) if kind else module
        for name in names:
            setattr(where, name, _of_phase(f"{kind or owner.rpartition('.')[2]}.{name}", vars(where)[name]))
    if module.__name__ == "robustft.data.prepare" and os.environ.get("POINTS_SHARD"):
        sys.modules["robustft.data.prepared"].SHARD = int(os.environ["POINTS_SHARD"])  # type: ignore[attr-defined]


def _of_phase(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def called(*arguments: Any, **options: Any) -> Any:
        passed(f"before {name}")
        result = original(*arguments, **options)
        passed(f"after {name}")
        return result

    return called


class _Finder(importlib.abc.MetaPathFinder):
    """Patches modules as they are imported."""

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.modules:
            return None
        self.modules.discard(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


NUMBERS = {name: int(getattr(signal, name)) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")}
