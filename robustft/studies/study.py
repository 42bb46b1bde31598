"""The entries of a study, what each of them makes of its settings, and where their results are kept."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.progress import Progress

from robustft.cli import checks, compose, identity, naming
from robustft.cli.accepted import shown
from robustft.common import configs, files, terminal
from robustft.common.errors import UserError
from robustft.common.locks import locked
from robustft.common.wording import counted
from robustft.evaluation.results import benchmark
from robustft.studies import store
from robustft.studies.store import Results
from robustft.studies.workers import execute, outcome, workers

MODEL = re.compile(r"\{([\w.-]+)\}")  # in a setting's value: the model that another entry leaves
MEASURED = ("metric.", "retain.", "disagreement")  # a run is the same one without, and its results lack it
SCALED = ("optimizer.", "trainer.", "beta")  # what a study varies in proportion to what is typed
console = terminal.console()


@dataclass(frozen=True)
class Entry:
    """One run: its name in the study and what would be typed after ``python run.py``.

    ``{name}`` in a setting stands for the model.safetensors of the entry of that name, which has ``keep=True``.

    Attributes:
        also: a text file of the run's folder to keep with its result.
    """

    name: str
    settings: tuple[str, ...]
    keep: bool = False
    also: str | None = None

    @property
    def needs(self) -> set[str]:
        return {name for setting in self.settings for name in MODEL.findall(setting)}


class Study:
    """The entries of a study and where their results are.

    Args:
        folder: of the results.
        settings: typed for all entries.
        work: for all else that runs leave; None: below runs/studies.

    Raises:
        UserError: a typed setting is one that the study varies; a result was made with other settings.
    """

    def __init__(self, entries: list[Entry], folder: Path, settings: Sequence[str], work: Path | None = None) -> None:
        self.entries, self.folder, self.settings = entries, folder, tuple(settings)
        root = Path(__file__).resolve().parents[2]
        ours = folder.is_relative_to(root)
        parent, name = (root, folder.relative_to(root)) if ours else (Path.cwd(), Path(folder.name))
        self.work = work or parent / naming.RUNS / "studies" / name
        self.file = folder / store.FILE
        self.results = store.read(self.file)
        self.by_name = {entry.name: entry for entry in entries}
        self._check()
        self.twin_of = self._twins()  # by name of an entry, the first one that is the same run

    def is_done(self, entry: Entry) -> bool:
        """Whether all that a run is to leave is among the results."""
        kept = self.results.get(entry.name)
        return kept is not None and (entry.also is None or entry.also in kept.get("files", {}))

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
            if not self.is_done(entry):
                choose(entry)
        return list(chosen.values())

    def finish(self, jobs: int, end: float) -> Results:
        """Run what has no result; the results of all.

        Raises:
            UserError: runs failed, or some are left when ``end`` (of ``time.monotonic``) has come.
        """
        if not all(map(self.is_done, self.entries)) or any(map(self._is_untidy, self.entries)):
            with self.alone():
                self.results = store.read(self.file)  # another process may have been at work on them until now
                for entry in self.entries:
                    self._share(self.by_name[self.twin_of[entry.name]])
                    if self._is_untidy(entry):
                        self._tidy(entry)
                if waiting := self.to_run():
                    self._run(waiting, jobs, end)
        if missing := [entry.name for entry in self.entries if not self.is_done(entry)]:
            raise UserError(
                f"{len(missing)} of {counted(len(self.entries), 'run')} to go ({missing[0]} …): repeat the command."
            )
        return {entry.name: self.results[entry.name] for entry in self.entries}

    def _run(self, waiting: list[Entry], jobs: int, end: float) -> None:
        """Run entries, ``jobs`` at a time, models before those that need them; start none after ``end``."""
        started = time.monotonic()
        left = {entry.name for entry in waiting}  # without a model yet
        running: dict[Future[str | None], Entry] = {}
        failed: dict[str, str] = {}
        if jobs > 1:
            os.environ["OMP_NUM_THREADS"] = "1"
        with workers(jobs) as pool, Progress(console=console, disable=not console.is_terminal) as progress:
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
            raise UserError("\n".join(lines if len(lines) == 1 else [f"{counted(len(lines), 'run')} failed:", *lines]))

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
        typed = compose.texts(compose.parse(self.settings))
        own = [[_named(setting) for setting in entry.settings] for entry in self.entries]
        jobs = compose.composed([[*self.overrides_of_all(), *settings] for settings in own])
        checks.refuse_idle(jobs, typed, sweep=True)
        for entry, settings, job in zip(self.entries, own, jobs, strict=True):
            try:
                checks.refuse_idle([job], compose.texts(compose.parse(settings)), sweep=True)
            except UserError as error:
                raise UserError(f"{entry.name}: {error}") from error
            if entry.name in self.results:
                self._refuse_other_pictures(entry, job)
                self._refuse_other_settings(entry, job, {*_names(self.settings), *_names(settings)})
        first = identity.distinct(jobs, also=[entry.also for entry in self.entries])
        return {entry.name: self.entries[number].name for entry, number in zip(self.entries, first, strict=True)}

    def _refuse_other_pictures(self, entry: Entry, job: DictConfig) -> None:
        """Raises a UserError where an entry has a result on another version of its benchmark."""
        there, here = benchmark(self.results[entry.name]), OmegaConf.select(job, "data.takes.benchmark")
        if there is not None and there != here:
            raise UserError(
                f"{entry.name} in {self.file} was measured on {there}, and runs are now on {here or 'other data'}:"
                " delete its line to run that again"
            )

    def _refuse_other_settings(self, entry: Entry, job: DictConfig, typed: set[str]) -> None:
        """Raises a UserError where an entry's result is that of another run, or lacks what is to be measured.

        What neither is typed nor stands in the result is as it always was.
        """
        record, written = self.results[entry.name], dict(configs.flatten(configs.container(job, resolve=False)))
        job, made = deepcopy(job), record["config"]
        try:
            identity.resolve(job, sweep=True)
            plain = configs.plain(job)
        except (OmegaConfBaseException, ValueError, TypeError):  # refers to what is known in a run alone
            return
        here, there = (dict(configs.flatten(_without_paths(one, str(self.work)))) for one in (plain, made))
        differing = identity.differing(job, made)
        differing |= {
            name: (value, there.get(name))
            for name, value in here.items()
            if name.startswith(MEASURED) and value != there.get(name)
        }
        settled = (record.get("protocol") or {}).get("settled") or {}
        for name in settled:  # a small set has its own where the model's recipe is followed
            if str(written.get(name)).startswith("${model.recipe."):
                differing.pop(name, None)
        groups = {name.partition(".")[0] for name in here}
        known = [
            name
            for name, (_, value) in differing.items()
            if (name in here and (name in there or _is_one_of(name, typed)))
            or (name not in here and value is not None and name.partition(".")[0] in groups)
        ]
        if known:
            known.sort(key=lambda name: not _is_one_of(name, typed))
            here_is, there_is = (shown(value) for value in differing[known[0]])
            more = f" and {counted(len(known) - 1, 'other setting')}" if len(known) > 1 else ""
            raise UserError(
                f"{entry.name} in {self.file} was not made with {known[0]}={here_is} (there: {there_is}){more}: delete"
                " its line to run that again, or keep these results in another folder"
            )

    def _share(self, entry: Entry) -> None:
        """Gives an entry's results, and its model, to those that are the same run, if there are any."""
        for twin in self.entries:
            if twin is entry or self.twin_of[twin.name] != entry.name:
                continue
            if self.is_done(entry) and not self.is_done(twin):
                self._add(twin, self.results[entry.name])
            if twin.keep and self.model(entry.name).exists() and not self.model(twin.name).exists():
                self.model(twin.name).parent.mkdir(parents=True, exist_ok=True)
                with files.atomic(self.model(twin.name)) as partial:
                    shutil.copyfile(self.model(entry.name), partial)

    def _check(self) -> None:
        varied = {setting.partition("=")[0] for entry in self.entries for setting in entry.settings}
        for key in (setting.partition("=")[0] for setting in self.settings):
            if key in varied and not key.startswith(SCALED):
                raise UserError(f"{key} is what this study varies: leave it out")

    def _keep(self, entry: Entry) -> None:
        folder = self.work / entry.name
        record = json.loads((folder / "results.json").read_text())
        record["config"] = _without_paths(record["config"], str(self.work))
        record["config"]["resume"] = None
        keep = any(twin.keep for twin in self.entries if self.twin_of[twin.name] == entry.name)
        if not keep:
            record["checkpoint"] = None
        if entry.also is not None:
            record["files"] = {entry.also: (folder / entry.also).read_text("utf-8")}
        self._add(entry, record)
        self._share(entry)
        self._tidy(entry)

    def _tidy(self, entry: Entry) -> None:
        """Takes away what nobody needs of an entry whose result, and those of its twins, are kept."""
        if not entry.keep:
            self.model(entry.name).unlink(missing_ok=True)
        (self.work / entry.name / "last.ckpt").unlink(missing_ok=True)  # the last: see `execute`

    def _is_untidy(self, entry: Entry) -> bool:
        """Whether a process was killed between keeping an entry's result and tidying up."""
        return self.is_done(entry) and (self.work / entry.name / "last.ckpt").exists()

    def _add(self, entry: Entry, record: dict[str, Any]) -> None:
        """A record becomes an entry's result; the file says so from now on."""
        self.results[entry.name] = {**record, "entry": entry.name, "name": entry.name}
        store.write(self.file, self.results)


def _named(setting: str) -> str:
    """A setting in which models of other entries are named as results name them."""
    return MODEL.sub(lambda match: f"{match[1]}/model.safetensors", setting)


def _names(settings: Sequence[str]) -> set[str]:
    """What settings set, those that choose an option of a group aside."""
    return {one.key_or_group for one in compose.parse(settings) if not compose.is_group(one.key_or_group)}


def _is_one_of(name: str, typed: set[str]) -> bool:
    """Whether a setting, or what it is a part of, is typed."""
    return any(name == one or name.startswith(f"{one}.") for one in typed)


def _without_paths(settings: Any, root: str) -> Any:
    """Settings as they are kept: where on this machine the study's own models were is nobody's business."""
    if isinstance(settings, dict):
        return {key: _without_paths(value, root) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_without_paths(value, root) for value in settings]
    return settings.replace(root + "/", "") if isinstance(settings, str) else settings
