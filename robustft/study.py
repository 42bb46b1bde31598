"""A study: many runs, one command, results that stay. The folders under experiments/ are made of it.

    python experiments/<study>/study.py [--jobs 2] [setting=value ...]
    python experiments/<study>/study.py --cost [setting=value ...]      # what that would take; see cost.py

Every run's results.json is kept as ``results/<name>.json`` beside the study's file, and a run that has one there is
not run again, so a long study can be spread over several sittings; an interrupted run goes on from its last state.
Everything else a run leaves (gallery, log, weights) is under runs/studies/. Settings on the command line apply to
every run; the results then go to a folder of their own: the same study on other models and data.
"""

import argparse
import contextlib
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from rich.progress import Progress

from robustft import config, files, overrides, runs, signals, streams, terminal
from robustft.errors import UserError, system_error
from robustft.locks import locked

Results = dict[str, dict[str, Any]]

MODEL = re.compile(r"\{([\w.-]+)\}")  # in a setting's value: the model that another entry leaves
SCALED = ("optimizer.", "trainer.", "beta")  # what a study varies in proportion to what is typed
console = terminal.console()


@dataclass(frozen=True)
class Entry:
    """One run: a name (of its result file) and what would be typed after ``python run.py``.

    ``{name}`` in a setting stands for the model.safetensors of the entry of that name, which has ``keep=True``.

    Attributes:
        also: a file of the run's folder to keep beside the results, as ``results/<name>.<suffix>``.
    """

    name: str
    settings: tuple[str, ...]
    keep: bool = False
    also: str | None = None

    @property
    def needs(self) -> set[str]:
        return {name for setting in self.settings for name in MODEL.findall(setting)}


def main(
    file: str,
    entries: Callable[[DictConfig], Iterable[Entry]],
    summarise: Callable[[Path, Results], None],
    then: Callable[[DictConfig, Results], Iterable[Entry]] | None = None,
) -> None:
    """The command of the study in ``file``.

    Args:
        entries: the runs, given the config that the command line's settings make (for its recipe).
        summarise: writes tables and pictures, given the folder and the results by name.
        then: more runs, whose settings are chosen by the results of ``entries``.
    """
    parser = argparse.ArgumentParser(description="Run a study; runs that have a result are not run again.")
    parser.add_argument("--jobs", type=int, help="runs at a time, one thread each (default: one per CPU)")
    parser.add_argument("--cost", action="store_true", help="say what the study would take, by timing real steps")
    parser.add_argument("--steps", type=int, help="of --cost: optimiser steps of each kind to time (default: 100)")
    parser.add_argument("--limit", type=float, help="start no run after so many minutes")
    parser.add_argument("settings", nargs="*", help="settings for every run, as after python run.py")
    arguments = parser.parse_intermixed_args()
    streams.guard()
    terminal.use_plain_letters()
    with signals.handled(signal.default_int_handler):
        _answer(file, arguments, entries, summarise, then)


def _answer(
    file: str,
    arguments: argparse.Namespace,
    entries: Callable[[DictConfig], Iterable[Entry]],
    summarise: Callable[[Path, Results], None],
    then: Callable[[DictConfig, Results], Iterable[Entry]] | None,
) -> None:
    """What `main` does, once the command line is read; a user's mistake ends the process with one message."""
    folder = Path(file).resolve().parent
    try:
        for name in ("jobs", "limit") if arguments.cost else ("steps",):
            if getattr(arguments, name) is not None:
                without = "with" if arguments.cost else "without"
                raise UserError(f"--{name}={getattr(arguments, name)} does nothing {without} --cost: leave it out")
        jobs = (os.cpu_count() or 1) if arguments.jobs is None else arguments.jobs
        limit = math.inf if arguments.limit is None else arguments.limit
        steps = 100 if arguments.steps is None else arguments.steps
        if jobs < 1 or not limit >= 0:
            raise UserError(f"--jobs={jobs} --limit={limit}: give at least one job, and no time below 0")
        if steps < 2:
            raise UserError(f"--steps={steps}: the first step is not timed, so give 2 or more")
        if arguments.settings:
            folder = folder / runs.settings_name(arguments.settings)
        cfg = overrides.compose_first(overrides.parse(arguments.settings))
        end = time.monotonic() + 60 * limit
        chosen = list(entries(cfg))
        if arguments.cost:
            from robustft.cost import show

            study = Study(chosen, folder, arguments.settings)
            return show(Path(file).resolve().parent.name, study, then and partial(then, cfg), steps)
        results = Study(chosen, folder, arguments.settings).finish(jobs, end)
        if then is not None:
            chosen += then(cfg, results)
            results = Study(chosen, folder, arguments.settings).finish(jobs, end)
        summarise(folder, results)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; " + ("nothing is kept" if arguments.cost else "the same command goes on"))
    except OSError as error:
        sys.exit(f"error: {system_error(error)}")


def tables(
    folder: Path, results: Results, *, baselines: Sequence[str] = (), leave_out: str | tuple[str, ...] = ()
) -> None:
    """comparison.md (.csv, .tex) and scatter.png of the results, as ``python -m robustft.report`` makes them.

    Args:
        baselines: systems, as ``--baseline`` takes them; differences to them are paired by seed.
        leave_out: how names begin that have no place in the table.

    Raises:
        UserError: they could not be made.
    """
    from robustft.report.__main__ import main as report

    shown = [str(folder / "results" / f"{name}.json") for name in results if not name.startswith(leave_out)]
    partial = ["--partial"] if any(record["partial"] for record in results.values()) else []
    options = [part for name in baselines for part in ("--baseline", name)]
    if report([*shown, *partial, *options, "--out", str(folder)]):
        raise UserError("the tables were not made")


class Study:
    """The entries of a study and where their results are.

    Raises:
        UserError: a typed setting is one that the study varies; a result was made with other settings.
    """

    def __init__(self, entries: list[Entry], folder: Path, settings: Sequence[str]) -> None:
        self.entries, self.folder, self.settings = entries, folder, tuple(settings)
        root = Path(__file__).resolve().parents[1]
        ours = folder.is_relative_to(root)
        parent, name = (root, folder.relative_to(root)) if ours else (Path.cwd(), Path(folder.name))
        self.work = parent / runs.RUNS / "studies" / name
        self.by_name = {entry.name: entry for entry in entries}
        self._check()
        self.twin_of = self._twins()  # by name of an entry, the first one that is the same run

    def result(self, entry: Entry) -> Path:
        return self.folder / "results" / f"{entry.name}.json"

    def kept(self, entry: Entry) -> list[Path]:
        """What a finished run has left beside the study's file."""
        also = [] if entry.also is None else [self.result(entry).with_suffix(Path(entry.also).suffix)]
        return [self.result(entry), *also]

    def model(self, name: str) -> Path:
        return self.work / name / "model.safetensors"

    def overrides(self, entry: Entry) -> list[str]:
        """What is typed for an entry, the models of other entries in place. Its own settings have the last word."""
        own = [MODEL.sub(lambda match: str(self.model(match[1])), setting) for setting in entry.settings]
        return [*self.overrides_of_all(), *own]

    def overrides_of_all(self) -> list[str]:
        return ["logger=none", "trainer.enable_checkpointing=true", *self.settings]

    def to_run(self) -> list[Entry]:
        """Entries without a result, and those whose model one of these needs and is no longer there."""
        chosen: dict[str, Entry] = {}

        def choose(entry: Entry) -> None:
            entry = self.by_name[self.twin_of[entry.name]]
            for name in sorted(entry.needs):
                if not self.model(name).exists():
                    choose(self.by_name[name])
            chosen[entry.name] = entry

        for entry in self.entries:
            if not all(file.exists() for file in self.kept(entry)):
                choose(entry)
        return list(chosen.values())

    def finish(self, jobs: int, end: float) -> Results:
        """Run what has no result; the results of all.

        Raises:
            UserError: runs failed, or some are left when ``end`` (of ``time.monotonic``) has come.
        """
        for entry in self.entries:
            self._share(self.by_name[self.twin_of[entry.name]])
        if waiting := self.to_run():
            self._run(waiting, jobs, end)
        if missing := [entry.name for entry in self.entries if not self.result(entry).exists()]:
            raise UserError(f"{len(missing)} of {len(self.entries)} runs to go ({missing[0]} …): repeat the command.")
        return {entry.name: json.loads(self.result(entry).read_text()) for entry in self.entries}

    def _run(self, waiting: list[Entry], jobs: int, end: float) -> None:
        """Run entries, ``jobs`` at a time, models before those that need them; start none after ``end``."""
        started = time.monotonic()
        left = {entry.name for entry in waiting}  # without a model yet
        running: dict[Future[str | None], Entry] = {}
        failed: dict[str, str] = {}
        if jobs > 1:
            os.environ["OMP_NUM_THREADS"] = "1"
        with (
            self.alone(),
            workers(jobs) as pool,
            Progress(console=console, disable=not console.is_terminal) as progress,
        ):
            task = progress.add_task("runs", total=len(waiting))
            while True:
                ready = [entry for entry in waiting if not self._needs(entry) & left] if time.monotonic() < end else []
                for entry in ready[: jobs - len(running)]:
                    waiting.remove(entry)
                    running[pool.submit(execute, str(self.work / entry.name), self.overrides(entry))] = entry
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    entry = running.pop(future)
                    if error := outcome(future, entry.name):
                        failed[entry.name] = f"{error} (log: {self.work / entry.name / 'run.log'})"
                    else:
                        left.discard(entry.name)
                        self._keep(entry)
                    progress.advance(task)
                    if not console.is_terminal:
                        took, to_go = (time.monotonic() - started) / 60, len(waiting) + len(running)
                        console.print(f"{entry.name}: {error or 'done'} ({to_go} to go, {took:.1f} min)")
        if failed:
            lines = [f"{name} failed: {error}" for name, error in failed.items()]
            raise UserError("\n".join(lines if len(lines) == 1 else [f"{len(lines)} runs failed:", *lines]))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else works at this study meanwhile: two would write into the same folders."""
        try:
            with locked(self.work / "study", wait=False):
                yield
        except BlockingIOError:
            raise UserError(f"another process is at work on this study, in {self.work}") from None

    def _needs(self, entry: Entry) -> set[str]:
        return {self.twin_of[name] for name in entry.needs}

    def _twins(self) -> dict[str, str]:
        """Checks what each entry makes of its settings; which are the same run as an entry before them.

        Raises:
            UserError: an entry has a setting that means nothing there, or a typed one means nothing in any.
        """
        typed = overrides.texts(overrides.parse(self.settings))
        own = [[_named(setting) for setting in entry.settings] for entry in self.entries]
        jobs = overrides.composed([[*self.overrides_of_all(), *settings] for settings in own])
        config.refuse_idle(jobs, typed, sweep=True)
        for entry, settings, job in zip(self.entries, own, jobs, strict=True):
            try:
                config.refuse_idle([job], overrides.texts(overrides.parse(settings)), sweep=True)
            except UserError as error:
                raise UserError(f"{entry.name}: {error}") from error
        first = config.distinct(jobs, also=[entry.also for entry in self.entries])
        return {entry.name: self.entries[number].name for entry, number in zip(self.entries, first, strict=True)}

    def _share(self, entry: Entry) -> None:
        """Gives an entry's results, and its model, to those that are the same run, if there are any."""
        for twin in self.entries:
            if twin is entry or self.twin_of[twin.name] != entry.name:
                continue
            for ours, theirs in zip(self.kept(entry), self.kept(twin), strict=True):
                if ours.exists() and not theirs.exists():
                    files.write(
                        theirs, ours.read_text().replace(f'"name": "{entry.name}"', f'"name": "{twin.name}"', 1)
                    )
            if twin.keep and self.model(entry.name).exists() and not self.model(twin.name).exists():
                self.model(twin.name).parent.mkdir(parents=True, exist_ok=True)
                with files.atomic(self.model(twin.name)) as partial:
                    shutil.copyfile(self.model(entry.name), partial)

    def _check(self) -> None:
        varied = {setting.partition("=")[0] for entry in self.entries for setting in entry.settings}
        for key in (setting.partition("=")[0] for setting in self.settings):
            if key in varied and not key.startswith(SCALED):
                raise UserError(f"{key} is what this study varies: leave it out")
        for entry in self.entries:
            if self.result(entry).exists():
                made = json.loads(self.result(entry).read_text())["config"]
                for setting in entry.settings:
                    own = _named(setting)
                    if not _has(made, own):
                        raise UserError(f"{self.result(entry)} was not made with {own}: delete it to run that again")

    def _keep(self, entry: Entry) -> None:
        folder = self.work / entry.name
        record = json.loads((folder / "results.json").read_text())
        record["config"] = _without_paths(record["config"], str(self.work))
        record["name"], record["config"]["resume"] = entry.name, None
        keep = any(twin.keep for twin in self.entries if self.twin_of[twin.name] == entry.name)
        if not keep:
            record["checkpoint"] = None
        if entry.also is not None:
            files.write(self.kept(entry)[-1], (folder / entry.also).read_text())
        files.write(self.result(entry), json.dumps(record, indent=1) + "\n")
        (folder / "last.ckpt").unlink(missing_ok=True)
        self._share(entry)
        if not entry.keep:
            self.model(entry.name).unlink(missing_ok=True)


def outcome(future: Future[str | None], name: str) -> str | None:
    """What went wrong in a run, if anything did.

    Raises:
        UserError: its process is no more.
    """
    try:
        return future.result()
    except BrokenProcessPool as cause:
        raise UserError(f"{name}: its process was killed. Was there enough memory?") from cause


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that stop, and leave their state behind, when this one is interrupted, and die with it."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one (of timeout, say) would cut the shutdown short
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_worker() -> None:
    """A worker dies with its parent, leaves Ctrl-C to it, and logs elsewhere than into the first run's folder."""
    logging.basicConfig(level=logging.WARNING)  # before a library does, with what is then standard error
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signals.leave_to_parent()  # which passes it on


def execute(folder: str, settings: list[str]) -> str | None:
    """One run in this process, its output in ``folder``/run.log; the error's text if it failed."""
    from robustft.cli import run_in

    path = Path(folder)
    if runs.is_finished(path):  # its result has been deleted: this one is to be another
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    with (
        (path / "run.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        handler, logger = logging.StreamHandler(log), logging.getLogger("robustft")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
        try:
            cfg = overrides.compose_first(overrides.parse(settings))
            with open_dict(cfg):
                cfg.pop("hydra")
            run_in(cfg, path, settings, sweep=True)  # one device; goes on with what was interrupted
        except KeyboardInterrupt:
            return "interrupted"
        except Exception as error:
            import traceback

            traceback.print_exc(file=log)
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        finally:
            logger.removeHandler(handler)
    return None


def _named(setting: str) -> str:
    """A setting in which models of other entries are named as results name them."""
    return MODEL.sub(lambda match: f"{match[1]}/model.safetensors", setting)


def _has(config: dict[str, Any], setting: str) -> bool:
    """Whether a run's config has the value of ``name=value``; a group's is its kind or name, where it has one."""
    (override,) = overrides.parse([setting])
    node: Any = config
    for part in override.key_or_group.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        if not {"kind", "name"} & node.keys():
            return True
        node = node.get("kind", node.get("name"))
    wanted = override.value()
    if isinstance(wanted, int | float) and isinstance(node, int | float):
        return math.isclose(wanted, node, rel_tol=1e-9)
    return str(node) == str(wanted)


def _without_paths(settings: Any, root: str) -> Any:
    """Settings as they are kept: where on this machine the study's own models were is nobody's business."""
    if isinstance(settings, dict):
        return {key: _without_paths(value, root) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_without_paths(value, root) for value in settings]
    return settings.replace(root + "/", "") if isinstance(settings, str) else settings
