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
RANDOM = 30
QUICK = 6  # points of a subject in a quick look

MODEL = ("model=tiny", "trainer=cpu", "trainer.enable_progress_bar=false")
SCENES = (
    *("data=scenes", "data.train_images=64", "data.holdout=16", "data.test_images=16", "data.batch_size=16"),
    *("data.eval_batch_size=8", "data.sets.scenes_v2=false", "data.sets.scenes_r=false"),
    "data.sets.scenes_sketch=false",
)
SMALL = (*MODEL, "model.pretrained=null", *SCENES)
EPOCHS = ("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "logger=csv")
TRAINING = (*SMALL, *EPOCHS)
UNTRAINED = tuple(setting for setting in SMALL if not setting.startswith("data.batch_size"))
HERE = "hydra.run.dir=run"
IN_PLACE = ("resume=auto", HERE)
FINISHED = "a finished run"

STUDY = f"""
from pathlib import Path

from robustft.common.files import write
from robustft.studies.main import main
from robustft.studies.study import Entry

SMALL = {(*SMALL, "trainer.max_epochs=2", "trainer.log_every_n_steps=1")}
UNTRAINED = {UNTRAINED}


def entries(cfg):
    for seed in (1, 2):
        yield Entry(f"vanilla_{{seed}}", (*SMALL, "method=finetune", f"seed={{seed}}"), keep=True)
    yield Entry("average", (*UNTRAINED, "method=wiseft", "checkpoint={{vanilla_1}}", "seed=1"))


def summarise(folder, results):
    write(Path(folder) / "summary.md", "\\n".join(f"{{name}} {{results[name]['id']['top1']}}" for name in results))


if __name__ == "__main__":
    main(__file__, entries, summarise)
"""

Trial = Generator[None, None, tuple[list[str], float]]


@dataclass(frozen=True)
class Subject:
    """A command that is made to end.

    Attributes:
        result: what is there once it is finished; the command, started once more, then says ``finished``.
        before: makes what it needs, in an empty folder.
        of: which of its points are tried.
        most: at most so many of them, evenly; 0: all.
        to: who gets the signal.
    """

    name: str
    command: Command
    result: str = "run/results.json"
    finished: str = FINISHED
    before: Callable[[Path], object] = lambda folder: None
    of: Callable[[str], bool] = lambda point: True
    most: int = 0
    to: str = "self"


def run(options: Options) -> Iterator[Case]:
    trials = Trials(options.folder)
    try:
        plain = Subject("training", Command((*TRAINING, *IN_PLACE)))
        found = _Whole(trials, plain)
        made = _made(trials, found.folder / "cache")
        late = replace(plain, before=lambda folder: shutil.copytree(found.folder / "cache", folder / "cache"))
        yield _kills(trials, plain, found, options, lambda point: not in_training(point), "before the training")
        yield _kills(trials, late, found, options, in_training, "in the training and behind it")
        yield from _signals(trials, late, found, options)
        if not options.quick:
            yield _at_random(trials, plain, found, options)
        for subject in _subjects(made, found.folder / "cache", options.quick):
            whole = _Whole(trials, subject)
            yield _kills(trials, subject, whole, options)
            if subject.command.ranks == 1 and not subject.command.real:
                yield from _signals(trials, subject, whole, options)
    finally:
        trials.close()


def _subjects(made: Path, cache: Path, quick: bool) -> Iterator[Subject]:
    """All but the plain training.

    Args:
        made: a folder with a finished run, an interrupted one, pictures and images in folders.
        cache: of the plain training.
    """

    def with_cache(*names: str) -> Callable[[Path], None]:
        def copy(folder: Path) -> None:
            if cache.exists():
                shutil.copytree(cache, folder / "cache")
            for name in names:
                shutil.copytree(made / name, folder / Path(name).name)

        return copy

    prepare = ("data=folders", "data.train=images", "data.prepared=copies", "prepare=true", *MODEL)
    prepare = (*prepare, "model.pretrained=null", "data.eval_batch_size=8", HERE)
    yield Subject(
        "prepare=true",
        Command(prepare, environment={"POINTS_SHARD": "8"}),
        before=with_cache("images"),
        of=lambda point: "copies" in point or "prepare" in point,
    )
    table = ("predict", "finished", "pictures", "--out", "table.csv", "--features", "features.npy")
    yield Subject("predict", Command(table), before=with_cache("finished", "pictures"))
    if quick:
        return
    yield Subject(
        "export",
        Command(("export", "finished", "out", "--format", "open_clip", "--images", "pictures")),
        result="out",
        finished="is there already",
        before=with_cache("finished", "pictures"),
    )
    plain = (*TRAINING, *IN_PLACE)
    yield Subject("a training that goes on", Command(plain), before=with_cache("interrupted/run"))
    yield Subject(
        "training, in micro-batches, saved after every step",
        Command((*plain, "trainer.accumulate_grad_batches=2", "save_minutes=0")),
        before=with_cache(),
        of=in_training,
    )
    yield Subject(
        "training, 2 loader processes", Command((*plain, "data.num_workers=2")), before=with_cache(), of=in_training
    )
    yield Subject(
        "training, 2 processes",
        Command((*plain, "trainer.devices=2", "trainer.strategy=ddp"), ranks=2),
        before=with_cache(),
        of=in_training,
    )
    yield Subject("an evaluation", Command((*UNTRAINED, "method=zeroshot", *IN_PLACE)), before=with_cache())
    yield Subject(
        "a run that replaces another",
        Command((*TRAINING, "seed=1", HERE, "overwrite=true")),
        before=with_cache("run"),
        of=lambda point: bool(re.search(r"run_in|\.new|start_over|unlink|make_loggers|write_results", point)),
    )
    yield Subject(
        "training by the command, 2 processes",
        Command((*plain, "trainer.devices=2", "trainer.strategy=ddp"), real=True),
        before=with_cache(),
        of=in_training,
        most=6,
        to="leader",
    )
    sweep = ("-m", "seed=1,2", "sweep=two", "hydra/launcher=local", "trainer.enable_checkpointing=true", *TRAINING)
    for to in ("leader", "group"):
        yield Subject(
            f"a sweep with 2 jobs ({'its first process' if to == 'leader' else 'all of it'})",
            Command(sweep, real=True),
            before=with_cache(),
            of=in_training,
            most=8,
            to=to,
        )
        yield Subject(
            f"a study with 2 jobs ({'its first process' if to == 'leader' else 'all of it'})",
            Command(("study.py", "--jobs", "2"), real=True),
            before=lambda folder: (with_cache()(folder), (folder / "study.py").write_text(STUDY)),
            of=lambda point: in_training(point) and "train_batch" not in point,
            most=8,
            to=to,
        )


def in_training(point: str) -> bool:
    """What lies before the training is the same in all its variants, and tried in the plain one."""
    before = r"cache/|unlink run/(?!best)|\.yaml|run_in|make_loggers|zeroshot_scores|experiment\.run |start_over"
    return not re.search(before, point)


class _Whole:
    """What a command leaves that nothing interrupts, the points that it passes, and the seconds that it takes."""

    def __init__(self, trials: Trials, subject: Subject) -> None:
        self.folder = trials.new_folder()
        subject.before(self.folder)
        (ended,) = trials.run([trials.do(subject.command, self.folder)])
        if ended.status != 0 or ended.orphans:
            raise RuntimeError(f"{subject.name} fails by itself ({ended.status}): {ended.said}")
        self.content, self.seconds = content(self.folder), ended.seconds
        points = points_of(self.folder / ".points")
        if subject.command.ranks > 1 or subject.command.real:  # in the order of the name: who is first, is chance
            points = sorted(points)
        self.points = [point for point in points if subject.of(point)]


def _made(trials: Trials, cache: Path) -> Path:
    """A folder with what commands need that work on something."""
    from PIL import Image

    folder, other = trials.new_folder(), trials.new_folder()
    for place in (folder, other):
        shutil.copytree(cache, place / "cache")
    random_pixels = random.Random(0)
    for kind in ("one", "two"):
        (folder / "images" / kind).mkdir(parents=True)
        for number in range(12):
            Image.frombytes("RGB", (40, 30), random_pixels.randbytes(3600)).save(
                folder / "images" / kind / f"{number}.png"
            )
    shutil.copytree(folder / "images" / "one", folder / "pictures")
    tiny = (*MODEL, "model.pretrained=embedded", *SCENES, "method=finetune", "trainer.max_steps=2", "logger=none")
    end = End(KILL, "before KeepState.on_train_batch_end #5")
    made = [
        trials.do(Command((*tiny, "hydra.run.dir=finished")), folder),
        trials.do(Command((*TRAINING, HERE)), folder),
        trials.do(Command((*TRAINING, *IN_PLACE)), other, end),
    ]
    for ended, expected in zip(trials.run(made), (0, 0, -KILL), strict=True):
        if ended.status != expected:
            raise RuntimeError(f"what the others need cannot be made: {ended.said}")
    shutil.copytree(other / "run", folder / "interrupted" / "run")
    return folder


def _kills(
    trials: Trials,
    subject: Subject,
    whole: _Whole,
    options: Options,
    of: Callable[[str], bool] = lambda point: True,
    where: str = "",
) -> Case:
    points = [point for point in whole.points if of(point)]
    chosen = _evenly(points, min(subject.most or len(points), QUICK if options.quick else len(points)))
    ends = [End(KILL, point, to=subject.to) for point in chosen]
    share = "" if len(chosen) == len(points) else f" of {len(points)}"
    name = f"SIGKILL at {len(ends)}{share} points of {subject.name}{where and f', {where}'}"
    return _case(name, trials, subject, whole, ends)


def _signals(trials: Trials, subject: Subject, whole: _Whole, options: Options) -> Iterator[Case]:
    """Each signal once in every phase."""
    phases = [point for point in whole.points if re.fullmatch(r"before \w+\.\w+ #1", point)]
    phases = _evenly(phases, 3) if options.quick else phases
    kinds = {"SIGTERM": (TERM, False), "SIGINT": (INT, False), "SIGHUP": (HUP, False), "SIGINT in a pipe": (INT, True)}
    for name, (number, pipe) in kinds.items():
        if options.quick and name == "SIGHUP":
            continue
        chosen = phases[:1] if options.quick and pipe else phases
        ends = [End(number, point, to="group" if pipe else "self", pipe=pipe) for point in chosen]
        yield _case(f"{name} in {len(ends)} phases of {subject.name}", trials, subject, whole, ends)


def _at_random(trials: Trials, subject: Subject, whole: _Whole, options: Options) -> Case:
    chance = random.Random(options.seed)
    ends = [End(KILL, after_s=chance.uniform(0, whole.seconds)) for _ in range(RANDOM)]
    return _case(f"SIGKILL at random in {subject.name}", trials, subject, whole, ends)


def _evenly(points: Sequence[str], count: int) -> list[str]:
    return [points[number * len(points) // count] for number in range(count)]


def _case(name: str, trials: Trials, subject: Subject, whole: _Whole, ends: Sequence[End]) -> Case:
    found = trials.run([_tried(trials, subject, whole, end) for end in ends])
    lost = tuple(f"{end}: {'; '.join(problems)}" for end, (problems, _) in zip(ends, found, strict=True) if problems)
    return Case(name, len(ends), lost, max((seconds for _, seconds in found), default=None))


def _tried(trials: Trials, subject: Subject, whole: _Whole, end: End) -> Trial:
    """The problems that there were, and the seconds that it took to go on."""
    folder = trials.new_folder()
    subject.before(folder)
    first = yield from trials.do(subject.command, folder, end)
    problems = _after_the_end(first, end, folder)
    finished = (folder / subject.result).exists()
    again = yield from trials.do(subject.command, folder)
    problems += [f"process {process} was left by the second command" for process in again.orphans]
    if again.status != 0 and not (finished and subject.finished in again.said):
        problems.append(f"it does not go on ({again.status}): {_last_line(again.said)}")
    else:
        problems += differences(whole.content, content(folder), ("best.safetensors",) if finished else ())
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


def _last_line(said: Any) -> str:
    return (str(said).strip().splitlines() or ["(nothing)"])[-1]
