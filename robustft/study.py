"""A study: many runs, one command, results that stay. The folders under experiments/ are made of it.

    python experiments/<study>/study.py [--jobs 2] [setting=value ...]

Every run's results.json is kept as ``results/<name>.json`` beside the study's file, and a run that has one there is
not run again, so a long study can be spread over several sittings. Everything else a run leaves (gallery, log,
weights) is under runs/studies/. Settings on the command line apply to every run; the results then go to a folder of
their own: the same study on other models and data.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.progress import Progress

from robustft import files, overrides, runs
from robustft.errors import UserError

Results = dict[str, dict[str, Any]]

MODEL = re.compile(r"\{([\w.-]+)\}")  # in a setting's value: the model that another entry leaves
console = Console()


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
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--limit", type=float, default=float("inf"), help="start no run after so many minutes")
    parser.add_argument("settings", nargs="*", help="settings for every run, as after python run.py")
    arguments = parser.parse_args()
    folder = Path(file).resolve().parent
    try:
        if arguments.settings:
            folder = folder / "_".join(runs.slug(setting) for setting in arguments.settings)
        cfg = overrides.compose_first(overrides.parse(arguments.settings))
        end = time.monotonic() + 60 * arguments.limit
        chosen = list(entries(cfg))
        results = Study(chosen, folder, arguments.settings).finish(arguments.jobs, end)
        if then is not None:
            chosen += then(cfg, results)
            results = Study(chosen, folder, arguments.settings).finish(arguments.jobs, end)
        summarise(folder, results)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


class Study:
    """The entries of a study and where their results are."""

    def __init__(self, entries: list[Entry], folder: Path, settings: Sequence[str]) -> None:
        self.entries, self.folder, self.settings = entries, folder, tuple(settings)
        root = Path(__file__).resolve().parents[1]
        self.work = (
            runs.RUNS.resolve() / "studies" / (folder.relative_to(root) if folder.is_relative_to(root) else folder.name)
        )
        self.by_name = {entry.name: entry for entry in entries}

    def result(self, entry: Entry) -> Path:
        return self.folder / "results" / f"{entry.name}.json"

    def kept(self, entry: Entry) -> list[Path]:
        """What a finished run has left beside the study's file."""
        also = [] if entry.also is None else [self.result(entry).with_suffix(Path(entry.also).suffix)]
        return [self.result(entry), *also]

    def model(self, name: str) -> Path:
        return self.work / name / "model.safetensors"

    def overrides(self, entry: Entry) -> list[str]:
        """What is typed for an entry, the models of other entries in place."""
        own = [MODEL.sub(lambda match: str(self.model(match[1])), setting) for setting in entry.settings]
        keep = str(entry.keep).lower()
        return [*own, "logger=none", "trainer.enable_progress_bar=false", f"trainer.enable_checkpointing={keep}",
                *self.settings]  # fmt: skip

    def to_run(self) -> list[Entry]:
        """Entries without a result, and those whose model one of these needs and is no longer there."""
        chosen: dict[str, Entry] = {}

        def choose(entry: Entry) -> None:
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
            UserError: a run failed, or some are left when ``end`` has come.
        """
        self.run(jobs, end)
        if missing := [entry.name for entry in self.entries if not self.result(entry).exists()]:
            raise UserError(f"{len(missing)} of {len(self.entries)} runs to go ({missing[0]} …): repeat the command.")
        return {entry.name: json.loads(self.result(entry).read_text()) for entry in self.entries}

    def run(self, jobs: int, end: float) -> None:
        """Run what has no result, ``jobs`` at a time; start none after ``end`` (of ``time.monotonic``)."""
        waiting, started = self.to_run(), time.monotonic()
        if not waiting:
            return
        left = {entry.name for entry in waiting}
        running: dict[Future[str | None], Entry] = {}
        failed: dict[str, str] = {}
        environment = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
        os.environ.update(environment)
        with (
            ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
            Progress(console=console, disable=not console.is_terminal) as progress,
        ):
            task = progress.add_task("runs", total=len(waiting))
            while waiting or running:
                ready = [entry for entry in waiting if not entry.needs & left]
                if time.monotonic() > end or failed:
                    waiting, ready = [], []
                for entry in ready[: jobs - len(running)]:
                    waiting.remove(entry)
                    running[pool.submit(execute, str(self.work / entry.name), self.overrides(entry))] = entry
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    entry = running.pop(future)
                    left.discard(entry.name)
                    if error := future.result():
                        failed[entry.name] = error
                    else:
                        self._keep(entry)
                    progress.advance(task)
                    took = time.monotonic() - started
                    if not console.is_terminal:
                        console.print(f"{entry.name}: {error or 'done'} ({len(left)} to go, {took / 60:.1f} min)")
        if failed:
            name, error = next(iter(failed.items()))
            raise UserError(f"{name} failed: {error} (log: {self.work / name / 'run.log'})")

    def _keep(self, entry: Entry) -> None:
        record = json.loads((self.work / entry.name / "results.json").read_text())
        record["config"] = _without_paths(record["config"], str(self.work))
        record["name"] = entry.name
        if entry.also is not None:
            content = (self.work / entry.name / entry.also).read_text()
            files.write(self.kept(entry)[-1], content)
        files.write(self.result(entry), json.dumps(record, indent=1) + "\n")


def execute(folder: str, settings: list[str]) -> str | None:
    """One run in this process, its output in ``folder``/run.log; the error's text if it failed."""
    from robustft.cli import run_in

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with (path / "run.log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            cfg = overrides.compose_first(overrides.parse(settings))
            with open_dict(cfg):
                cfg.pop("hydra")
            run_in(cfg, path, settings)
        except Exception as error:
            import traceback

            traceback.print_exc(file=log)
            return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _without_paths(settings: Any, root: str) -> Any:
    """Settings as they are kept: where on this machine the study's own models were is nobody's business."""
    if isinstance(settings, dict):
        return {key: _without_paths(value, root) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_without_paths(value, root) for value in settings]
    return settings.replace(root + "/", "") if isinstance(settings, str) else settings
