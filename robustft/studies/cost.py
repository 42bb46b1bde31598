"""What a study will take: a few real steps of every kind of training in it, timed, times how many there are.

    python experiments/<study>/study.py --cost [setting=value ...]

The steps are the product's own command on the study's own data: loading, weights, memory and device are what they will
be. Entries are taken to differ in how they train, not in their data or batch size.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from robustft.cli import checks, compose
from robustft.common import configs, terminal
from robustft.common.errors import UserError
from robustft.studies.store import Results
from robustft.studies.study import MODEL, Entry, Study
from robustft.studies.workers import execute, outcome, workers

if TYPE_CHECKING:
    from robustft.data.datamodule import RobustnessData

EVALUATED = 64  # images of each evaluation set in a trial
# How fast a step is does not depend on these, unless β is 0 and there is no teacher.
SAME_SPEED = re.compile(
    r"(seed|temperature|disagreement|optimizer\..*|data\.(holdout|data)_seed|mask\.threshold)=.*|beta=(?!0*\.?0*$).*"
)
LENGTH = re.compile(r"trainer\.max_(epochs|steps)=.*")
OF_TRAINING = re.compile(r"(mask|fill|beta|temperature|alpha|disagreement)(\..*)?=.*")
VANILLA = ("method=finetune",)

Kind = tuple[str, ...]  # settings that make a kind of training step
SecondStage = Callable[[Results], Iterable[Entry]]  # entries whose settings depend on results


@dataclass
class Work:
    """What there is to do, counted.

    Attributes:
        trainings: how many of each kind.
        images: training images of each kind, every epoch's.
        encoded: training images that are encoded for probes: once, whatever the number of probes.
    """

    runs: int = 0
    trainings: Counter[Kind] = field(default_factory=Counter)
    images: Counter[Kind] = field(default_factory=Counter)
    encoded: int = 0


@dataclass(frozen=True)
class Throughput:
    """How fast it goes, measured.

    Attributes:
        images_per_s: of each kind of step; of VANILLA too where there are probes.
        run_s: seconds that a run takes besides its training: start, evaluation, pictures.
    """

    images_per_s: Mapping[Kind, float]
    run_s: float

    def training_s(self, work: Work, kind: Kind) -> float:
        """Seconds that all trainings of a kind take."""
        return work.images[kind] / self.images_per_s[kind]

    def encoding_s(self, work: Work) -> float:
        """Take a forward pass for a third of a training step's work."""
        return work.encoded / (3 * self.images_per_s[VANILLA]) if work.encoded else 0.0

    def seconds(self, work: Work) -> float:
        """Seconds that everything takes, one run at a time."""
        trainings = sum(self.training_s(work, kind) for kind in work.images)
        return trainings + self.encoding_s(work) + work.runs * self.run_s


def kinds(entry: Entry) -> list[Kind]:
    """Name the kinds of training step that an entry takes: none for averages and evaluations, two for LP-FT."""
    settings = [s for s in entry.settings if not (SAME_SPEED.fullmatch(s) or LENGTH.fullmatch(s) or MODEL.search(s))]
    if "fill=none" not in settings:  # without a fill masked patches are left out, and the sequence is shorter
        settings = [s for s in settings if not s.startswith("mask.rate=")]
    groups = ("method=", "mask=", "fill=")
    settings.sort(key=lambda s: next((k for k, group in enumerate(groups) if s.startswith(group)), len(groups)))
    method = _method(tuple(settings))
    if stages := method.takes.get("stages"):
        rest = [s for s in settings if not s.startswith("method=")]
        return [(*stage, *rest) for stage in stages]
    return [tuple(settings)] if method.takes.trains else []


@cache
def _method(settings: Kind) -> DictConfig:
    return compose.compose_first(compose.parse(settings)).method


def _probes(kind: Kind) -> bool:
    """Whether a step is one of the head alone, on known features."""
    return bool(_method(kind).takes.get("features"))


def label(kind: Kind) -> str:
    """Write a kind of step as it is typed."""
    return " ".join(kind) or "as configured"


def count(entries: Sequence[Entry], settings: Sequence[str]) -> Work:
    """Count runs, trainings and images.

    Args:
        settings: typed for all entries.

    Raises:
        UserError: the settings cannot work.
    """
    from robustft.experiment import quieten  # torch takes a second to import
    from robustft.training.loop import planned_steps
    from robustft.training.trainer import make_trainer

    quieten()
    data = _data(tuple(settings))

    @cache
    def images(typed: tuple[str, ...], epochs: int | None = None) -> int:
        options = configs.plain(_composed((*settings, *typed)))["trainer"]
        options |= {} if epochs is None else {"max_epochs": epochs}
        return planned_steps(data, make_trainer(options, Path())) * data.batch_size

    work = Work(runs=len(entries))
    for entry in entries:
        for kind in kinds(entry):
            typed = tuple(s for s in entry.settings if LENGTH.fullmatch(s) or s.startswith("method="))
            first_stage = _probes(kind) and not _probes(tuple(entry.settings))
            epochs = _composed((*settings, *typed)).method.probe.epochs if first_stage else None
            work.trainings[kind] += 1
            work.images[kind] += images(typed, epochs)
    if any(map(_probes, work.images)):
        work.encoded = len(data.training_set())
    return work


@cache
def _composed(settings: tuple[str, ...]) -> DictConfig:
    cfg = compose.compose_first(compose.parse(settings))
    with open_dict(cfg):
        cfg.pop("hydra")
    checks.check(cfg)
    return cfg


@cache
def _data(settings: tuple[str, ...]) -> "RobustnessData":
    """Made once: a million files take a while to list."""
    from robustft.inputs import make_data

    return make_data(_composed(settings))


def trials(study: Study, steps: int) -> dict[Kind | None, list[str]]:
    """Choose what is typed to time each kind of step and, under None, a run's start and whole evaluation."""
    wanted = list(dict.fromkeys(kind for entry in study.entries for kind in kinds(entry)))
    if any(map(_probes, wanted)) and VANILLA not in wanted:
        wanted.append(VANILLA)
    first, *others = study.entries
    shared = [s for s in first.settings if s.startswith("data.") and all(s in entry.settings for entry in others)]
    typed = compose.compose_first(compose.parse(study.settings)).data.eval_images or EVALUATED
    limits = [f"trainer.max_steps={steps}", f"data.eval_images={min(EVALUATED, typed)}", "logger=none"]
    found: dict[Kind | None, list[str]] = {kind: [*study.settings, *shared, *kind, *limits] for kind in wanted}
    # Last: the text tower has done its work by then.
    general = [s for s in study.settings if not OF_TRAINING.fullmatch(s)]
    found[None] = [*general, *shared, "method=zeroshot", "logger=none"]
    return found


def run_trials(study: Study, steps: int) -> dict[Kind | None, dict[str, Any]]:
    """Results of the trials, made one after the other in one process.

    Raises:
        UserError: a trial failed, or was too short.
    """
    typed = trials(study, steps)
    records: dict[Kind | None, dict[str, Any]] = {}
    root = study.work / ".cost"  # no run's name
    console = Console(stderr=True)
    with study.alone(), workers(1) as pool, Progress(console=console, disable=not console.is_terminal) as progress:
        shutil.rmtree(root, ignore_errors=True)
        task = progress.add_task("", total=len(typed))
        try:
            for number, (kind, settings) in enumerate(typed.items()):
                name = "start and evaluation" if kind is None else label(kind)
                progress.update(task, description=name)
                if not console.is_terminal:
                    console.print(f"trial {number + 1} of {len(typed)}: {name}", highlight=False)
                folder = root / str(number)
                if error := outcome(pool.submit(execute, str(folder), settings), name):
                    raise UserError(f"{name} failed: {error} (log: {folder / 'run.log'})")
                record = json.loads((folder / "results.json").read_text())
                if kind is not None and record["train_images_per_s"] is None:
                    raise UserError(f"{name}: no step was timed. That takes two without an evaluation between them")
                records[kind] = record
                progress.advance(task)
        except KeyboardInterrupt:
            shutil.rmtree(root, ignore_errors=True)
            raise
        shutil.rmtree(root)
    return records


def show(title: str, study: Study, second_stage: SecondStage | None, steps: int) -> None:
    """Print what the study takes, and what of it is still to do.

    Args:
        second_stage: is given trials' results in the place of those that are not there yet.
        steps: optimiser steps of a trial; loader processes run ahead by a few at first.
    """
    from robustft.common.machine import device_name

    count(study.entries, study.settings)  # finds mistakes before time is spent
    records = run_trials(study, steps)
    guessed = second_stage is not None and bool(study.to_run())
    if second_stage is not None:
        results = {e.name: study.results.get(e.name) or records[[None, *kinds(e)][-1]] for e in study.entries}
        study = Study([*study.entries, *second_stage(results)], study.folder, study.settings)
    whole = count(study.entries, study.settings)
    if new := [kind for kind in whole.images if kind not in records]:
        raise UserError(f"the second stage trains in ways that the first does not: {label(new[0])}")
    rates = {kind: record["train_images_per_s"] for kind, record in records.items() if kind is not None}
    throughput = Throughput(rates, records[None]["wall_s"])

    device = device_name(compose.compose_first(compose.parse(study.settings)).trainer.accelerator)
    notes = _notes(whole, steps, guessed)
    table = Table(title=f"{title} on {device}, one run at a time", caption=notes, caption_justify="left")
    table.add_column("what")
    for heading in ("how many", "images", "images/s", "time"):
        table.add_column(heading, justify="right")

    def row(what: str, number: int | None, images: int | None, rate: str, seconds: float) -> None:
        counts = ("" if value is None else f"{value:,}" for value in (number, images))
        table.add_row(what, *counts, rate, _time(seconds))

    for kind, images in sorted(whole.images.items(), key=lambda item: -throughput.training_s(whole, item[0])):
        row(label(kind), whole.trainings[kind], images, f"{rates[kind]:,.1f}", throughput.training_s(whole, kind))
    if whole.encoded:
        row("training images encoded for probes", 1, whole.encoded, "*", throughput.encoding_s(whole))
    row(f"start and evaluation, {_time(throughput.run_s)} each", whole.runs, None, "", whole.runs * throughput.run_s)
    table.add_section()
    row("in all", whole.runs, None, "", throughput.seconds(whole))
    left = study.to_run()
    if len(left) < whole.runs:
        row("still to do", len(left), None, "", throughput.seconds(count(left, study.settings)))
    terminal.print_table(terminal.console(), table)


def _time(seconds: float) -> str:
    from robustft.training.callbacks import duration  # torch again

    return f"{seconds:.1f} s" if 0 < seconds < 10 else duration(seconds)


def _notes(work: Work, steps: int, guessed: bool) -> str:
    notes = [f"Measured over up to {steps} steps of each kind."]
    if work.encoded:
        notes.append("* Taken as three times as fast as method=finetune.")
    if guessed:
        notes.append("The second stage's settings are not chosen yet: the trials' take their place.")
    if any("mask.source=teacher" in kind for kind in work.images):
        notes.append("mask.source=teacher: timed with maps taken in the step, if the trial is shorter than an epoch.")
    notes.append("Left out: evaluations during training, those of greedy soups, measuring disagreement, saving.")
    return "\n".join(notes)
