"""Kills and signals at every point of trainings, sweeps, studies, preparations, exports and predictions, and at random.

The points (tests/faults/points.py) are those that a first, uninterrupted command passes: before and after every file is
put in place or taken away, and before and after every change of phase. Then, for each of them, the command is made to
end there, and started again as it was typed. What it leaves in the end has to be what the uninterrupted one left, byte
for byte: weights, predictions, pictures, settings, results (but for times and the note of resuming), the cache, and
no file more. In between no process may be left, no traceback be said, and no file lie under its name half-written.
"""

import random
import re
import shutil
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Options
from tests.faults.trials import Command, End, Ended, Trials, content, differences, not_whole, points_of

KILL, TERM, INT, HUP = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP
MODEL = ("model=tiny", "model.pretrained=null", "trainer=cpu", "trainer.enable_progress_bar=false")
SCENES = (
    *("data=scenes", "data.train_images=64", "data.holdout=16", "data.test_images=16", "data.batch_size=16"),
    *("data.eval_batch_size=8", "data.sets.scenes_v2=false", "data.sets.scenes_r=false"),
    "data.sets.scenes_sketch=false",
)
TRAINING = (*MODEL, *SCENES, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "logger=csv")
IN_PLACE = ("resume=auto", "hydra.run.dir=run")
RANDOM = 30

Trial = Generator[None, None, tuple[list[str], float]]


@dataclass(frozen=True)
class Subject:
    """A command that is made to end.

    Attributes:
        result: what is there once it is finished; the command, started once more, says so and changes nothing.
        before: makes what it needs, in an empty folder.
        of: which of its points are tried; None: all.
    """

    name: str
    command: Command
    result: str
    before: Callable[[Path], None] | None = None
    of: Callable[[str], bool] | None = None


def in_training(point: str) -> bool:
    """What lies behind the start of the training is the same in all its variants, and tried in the plain one."""
    return not re.search(r"cache/|\.yaml|run_in|make_loggers|zeroshot_scores|experiment\.run |start_over", point)


PLAIN = Subject("training", Command((*TRAINING, *IN_PLACE)), "run/results.json")


def run(options: Options) -> Iterator[Case]:
    trials = Trials(options.folder)
    try:
        yield from _subject(trials, PLAIN, options)
    finally:
        trials.close()


def _subject(trials: Trials, subject: Subject, options: Options) -> Iterator[Case]:
    """Kills at all points of a subject."""
    whole, points, _ = _whole(trials, subject)
    chosen = [point for point in points if subject.of is None or subject.of(point)]
    if options.quick:
        chosen = chosen[:: max(1, len(chosen) // 8)]
    ends = [End(KILL, point) for point in chosen]
    yield _case(f"SIGKILL at {len(chosen)} points of {subject.name}", trials, subject, whole, ends)


def _whole(trials: Trials, subject: Subject) -> tuple[dict[str, Any], list[str], float]:
    """What the command leaves that nothing interrupts, the points that it passes, and the seconds that it takes."""
    folder = trials.new_folder()
    if subject.before is not None:
        subject.before(folder)
    (ended,) = trials.run([trials.do(subject.command, folder)])
    if ended.status != 0:
        raise RuntimeError(f"{subject.name} fails by itself: {ended.said}")
    return content(folder), points_of(folder / ".points"), ended.seconds


def _case(name: str, trials: Trials, subject: Subject, whole: dict[str, Any], ends: Sequence[End]) -> Case:
    found = trials.run([_tried(trials, subject, whole, end) for end in ends])
    lost = tuple(f"{end}: {'; '.join(problems)}" for end, (problems, _) in zip(ends, found, strict=True) if problems)
    return Case(name, len(ends), lost, max((seconds for _, seconds in found), default=None))


def _tried(trials: Trials, subject: Subject, whole: dict[str, Any], end: End) -> Trial:
    """The problems that there were, and the seconds that it took to go on."""
    folder = trials.new_folder()
    if subject.before is not None:
        subject.before(folder)
    first = yield from trials.do(subject.command, folder, end)
    problems = _after_the_end(first, end, folder)
    finished = (folder / subject.result).exists()
    again = yield from trials.do(subject.command, folder)
    problems += [f"process {process} was left by the second command" for process in again.orphans]
    if again.status != 0 and not (finished and "a finished run" in again.said):
        problems.append(f"it does not go on: {_last_line(again.said)}")
    else:
        problems += differences(whole, content(folder), ("best.safetensors",) if finished else ())
    if not problems:
        shutil.rmtree(folder)
    return problems, again.seconds


def _after_the_end(ended: Ended, end: End, folder: Path) -> list[str]:
    problems = not_whole(folder) + [f"process {process} was left" for process in ended.orphans]
    if end.at is not None and not (folder / ".points.reached").exists():
        problems.append("it never came there")
    if end.number == KILL:
        return problems
    if "Traceback" in ended.said:
        problems.append(f"it said a traceback: {_last_line(ended.said)}")
    if ended.status not in (130, -end.number, 128 + end.number):
        problems.append(f"its status was {ended.status}")
    return problems


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["(nothing)"])[-1]
