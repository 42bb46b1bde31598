"""What a study will take: a few real steps of every kind of training in it, timed, times how many there are.

    python experiments/<study>/study.py --cost [setting=value ...]

The steps are the product's own command on the study's own data: loading, weights, memory and device are what they will
be. A teacher's maps (mask.source=teacher), which a study looks up, are taken in the step here.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from robustft import config, overrides
from robustft.errors import UserError
from robustft.study import MODEL, Entry, Results, Study, execute, workers

EVALUATED = 64  # images of each evaluation set in a trial
# How fast a step is does not depend on these.
SAME_SPEED = re.compile(r"(seed|beta|temperature|disagreement|optimizer\..*|data\.holdout_seed|mask\.threshold)=.*")
LENGTH = re.compile(r"trainer\.max_(epochs|steps)=.*")
VANILLA, PROBE = ("method=finetune",), ("method=linear_probe",)
Kind = tuple[str, ...]  # settings that make a kind of training step
More = Callable[[Results], Iterable[Entry]]  # entries that depend on results


@dataclass
class Cost:
    """What a study consists of and how fast that goes.

    Attributes:
        done: runs that have a result already.
        trained: training images, every epoch's counted, of each kind of step.
        encoded: images that pass a frozen encoder, besides the evaluation sets: a forward pass each.
        images_per_s: of each kind of step.
        run_s: seconds that a run takes besides its training: start, evaluation, pictures.
    """

    runs: int = 0
    done: int = 0
    trainings: Counter[Kind] = field(default_factory=Counter)
    trained: Counter[Kind] = field(default_factory=Counter)
    encoded: int = 0
    images_per_s: dict[Kind, float] = field(default_factory=dict)
    run_s: float = 0.0

    def seconds(self, kind: Kind) -> float:
        return self.trained[kind] / self.images_per_s[kind]

    @property
    def encoding_s(self) -> float:
        """A forward pass is a third of a training step's work."""
        return self.encoded / (3 * self.images_per_s[VANILLA]) if self.encoded else 0.0

    @property
    def total_s(self) -> float:
        return sum(map(self.seconds, self.trained)) + self.encoding_s + self.runs * self.run_s


def kinds(entry: Entry) -> list[Kind]:
    """The kinds of training step that an entry takes: none for averages and evaluations, two for LP-FT."""
    settings = [s for s in entry.settings if not (SAME_SPEED.fullmatch(s) or LENGTH.fullmatch(s) or MODEL.search(s))]
    if "fill=none" not in settings:  # without a fill masked patches are left out, and the sequence is shorter
        settings = [s for s in settings if not s.startswith("mask.rate=")]
    method = next((s.removeprefix("method=") for s in settings if s.startswith("method=")), "counterfactual")
    if method == "lpft":
        return [PROBE, VANILLA]
    return [tuple(settings)] if _trains(method) else []


def said(kind: Kind) -> str:
    return " ".join(kind) or "as configured"


@cache
def _trains(method: str) -> bool:
    return overrides.compose_first(overrides.parse([f"method={method}"])).method.trains


def measure(study: Study, more: More | None, steps: int) -> Cost:
    """Time the study's kinds of step and a whole evaluation, and count.

    Args:
        more: is given results of the trials in the place of those of the entries.
        steps: optimiser steps of a trial; loader processes run ahead by a few at first.

    Raises:
        UserError: a trial failed.
    """
    wanted = list(dict.fromkeys([VANILLA, *(kind for entry in study.entries for kind in kinds(entry))]))
    trial = [f"trainer.max_steps={steps}", f"data.eval_images={EVALUATED}", "logger=none"]
    trials: dict[Kind | None, list[str]] = {kind: [*trial, *study.settings, *kind] for kind in wanted}
    trials[None] = ["logger=none", *study.settings, "method=zeroshot"]  # last: the text tower's work is done by then
    tried = dict(zip(trials, _tried(study, trials), strict=True))
    entries = list(study.entries)
    if more is not None:
        entries += more({entry.name: tried[[None, *kinds(entry)][-1]] for entry in entries})
    cost = count(entries, study.settings)
    cost.images_per_s = {kind: tried[kind]["train_images_per_s"] for kind in wanted}
    cost.run_s = tried[None]["wall_s"]
    cost.done = sum(study.result(entry).exists() for entry in entries)
    return cost


def _tried(study: Study, trials: dict[Kind | None, list[str]]) -> Iterator[dict[str, Any]]:
    """Results of the trials, one after the other in one process."""
    root = study.work / "cost"
    console = Console(stderr=True)
    with study.alone(), workers(1) as pool, Progress(console=console, disable=not console.is_terminal) as progress:
        shutil.rmtree(root, ignore_errors=True)
        task = progress.add_task("", total=len(trials))
        for number, (kind, settings) in enumerate(trials.items()):
            label = "start and evaluation" if kind is None else said(kind)
            progress.update(task, description=label)
            if not console.is_terminal:
                console.print(f"trial {number + 1} of {len(trials)}: {label}", highlight=False)
            folder = root / str(number)
            if error := pool.submit(execute, str(folder), settings).result():
                raise UserError(f"{label} failed: {error} (log: {folder / 'run.log'})")
            record = json.loads((folder / "results.json").read_text())
            if kind is not None and record["train_images_per_s"] is None:
                raise UserError(f"{label}: the first step is not timed, so there have to be two or more")
            yield record
            progress.advance(task)
    shutil.rmtree(root)


def count(entries: Sequence[Entry], settings: Sequence[str]) -> Cost:
    """Runs, trainings and images of a study, none of them measured."""
    from robustft.experiment import Run, quieten  # torch takes a second to import
    from robustft.training import make_trainer, planned_steps

    quieten()

    @cache
    def composed(typed: tuple[str, ...]) -> DictConfig:
        cfg = overrides.compose_first(overrides.parse([*settings, *typed]))
        with open_dict(cfg):
            cfg.pop("hydra")
        config.check(cfg)
        return cfg

    data = Run(composed(())).data

    @cache
    def images(typed: tuple[str, ...], epochs: int | None = None) -> int:
        options = config.plain(composed(typed))["trainer"]
        options |= {} if epochs is None else {"max_epochs": epochs}
        return planned_steps(data, make_trainer(options, Path())) * data.batch_size

    cost = Cost(runs=len(entries))
    for entry in entries:
        for kind in kinds(entry):
            typed = tuple(s for s in entry.settings if LENGTH.fullmatch(s) or s.startswith("method="))
            first_stage = kind == PROBE and "method=lpft" in typed
            epochs = composed(typed).method.probe.epochs if first_stage else None
            cost.trainings[kind] += 1
            cost.trained[kind] += images(typed, epochs)
    if PROBE in cost.trained:
        cost.encoded = len(data.training_set())  # once, whatever the number of probes
    return cost


def show(title: str, study: Study, more: More | None, steps: int) -> None:
    """Measure, and print what the study takes."""
    from robustft.callbacks import duration
    from robustft.machine import device_name

    cost = measure(study, more, steps)
    device = device_name(overrides.compose_first(overrides.parse(study.settings)).trainer.accelerator)
    table = Table(title=f"{title} on {device}, one run at a time", caption=_small_print(cost, steps))
    table.add_column("what")
    for heading in ("how many", "images", "images/s", "time"):
        table.add_column(heading, justify="right")

    def row(what: str, number: int | None, images: int | None, rate: str, seconds: float) -> None:
        counts = ("" if value is None else f"{value:,}" for value in (number, images))
        table.add_row(what, *counts, rate, duration(seconds))

    for kind, images in sorted(cost.trained.items(), key=lambda item: -cost.seconds(item[0])):
        row(said(kind), cost.trainings[kind], images, f"{cost.images_per_s[kind]:,.1f}", cost.seconds(kind))
    if cost.encoded:
        row("training images encoded for probes", 1, cost.encoded, "*", cost.encoding_s)
    row(f"start and evaluation, {duration(cost.run_s)} each", cost.runs, None, "", cost.runs * cost.run_s)
    table.add_section()
    hours = cost.total_s / 3600
    row(f"in all: {hours:,.3g} hours", cost.runs, None, "", cost.total_s)
    Console().print(table)
    if cost.done:
        print(f"{cost.done} of the {cost.runs} runs have a result already and will not be run again.")


def _small_print(cost: Cost, steps: int) -> str:
    starred = "* taken as three times as fast as method=finetune. " if cost.encoded else ""
    left_out = "Left out: what greedy soups evaluate, and measuring disagreement."
    return f"Measured over up to {steps} steps of each kind. {starred}{left_out}"
