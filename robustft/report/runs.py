"""The runs a report is about: found and read, from results files and published tables."""

import glob
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft.cli import identity
from robustft.cli.identity import renewed
from robustft.common.configs import flatten
from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.common.wording import counted, noun
from robustft.evaluation.results import average, benchmark, read_results
from robustft.evaluation.schema import find_fault
from robustft.report import schema1

Record = dict[str, Any]
RESULTS = ("results.json", "results.jsonl")  # of a run, of a study
SHOWN = 3  # of the files that are passed over

# What changes where or how fast a run is made, but not what it is (to whoever goes on with it), and what one system may
# differ in from run to run: its seeds, the place of its data.
INCIDENTAL = re.compile(
    r"(?!trainer\.max_time$)"  # one may go on with another, but a training that it ended is another system
    rf"(?:{identity.INCIDENTAL.pattern}$|(name|seed|hydra|output_dir|gallery"
    r"|data\.(root|holdout_seed|sets|_target_)"
    r"|trainer\.(?!max_epochs$|max_steps$|limit_train_batches$|gradient_clip_val$|precision$)[^.]*)(\..*)?$)"
)
# Those that a zero-shot model does not depend on: how others are trained.
NOT_ZEROSHOT = re.compile(
    rf"{INCIDENTAL.pattern}|(method\.|mask|fill|beta|alpha|temperature|optimizer|trainer|init|teacher|checkpoints?$"
    r"|data\.batch_size|data\.lossy|model\.grad_checkpointing)"
)
SEED_OR_TIME = re.compile(r"seed[=_. -]?\d+|\d{4}-\d\d-\d\d[T_/ -]?\d\d[-:.]?\d\d[-:.]?\d\d")
PUBLISHED_SETS = {
    "ImageNetV2": "imagenet_v2",
    "ImageNetR": "imagenet_r",
    "ImageNetSketch": "imagenet_sketch",
    "ObjectNet": "objectnet",
    "ImageNetA": "imagenet_a",
}


@dataclass(frozen=True, eq=False)
class Run:
    """One results file (or one line of a file of several): `record` has the keys of `results.json`.

    A published result has method "published"; what it does not tell (seed, counts) is None.
    """

    path: Path
    record: Record

    @property
    def panel(self) -> tuple[str, str]:
        """Runs are comparable within one model and one in-distribution set."""
        return self.record["model"], self.record["id"]["name"]

    @property
    def recipe(self) -> str | None:
        """The recipe by which it stands apart from others: results by two recipes are not compared.

        None where it was trained by the model's, by one that was typed, or not at all.
        """
        told = None if self.record["method"] == "zeroshot" else (self.record.get("protocol") or {}).get("recipe")
        return None if told in (None, "model", "typed") else str(told)

    @property
    def constant(self) -> bool:
        """Its scores are those of every seed: nothing was drawn."""
        return self.record["seed"] is None or self.record["method"] == "zeroshot"

    def value(self, key: str) -> float | None:
        """A score by its place, "id", "ood_avg", "holdout" or the name of a shift set: top-1 in 0…1.

        With the name of a metric behind a dot ("id.ece") that metric; on average over the shifts, if all have it.
        "retention.pets" is the top-1 on another task, "retention" the mean of what fine-tuning changed on all of them.
        """
        place, _, metric = key.partition(".")
        if place == "retention":
            known = self.record.get("retention") or {}
            if metric or not known:
                return known[metric]["top1"] if metric in known else None
            return sum(one["top1"] - one["zeroshot_top1"] for one in known.values()) / len(known)
        if place == "ood_avg":
            return average(self.record, metric) if metric else self.record["ood_avg"]
        score = self.record[place] if place in ("id", "holdout") else self.record["ood"].get(place)
        return score.get(metric or "top1") if score else None

    @property
    def display(self) -> dict[str, Any]:
        """How it is called and drawn."""
        told = self.record.get("display")
        return told if told is not None and told.get("marker") else schema1.display(self.record)

    def dial(self, name: str) -> Any:
        """The value of a dial: a key of the record, or of its settings."""
        return self.record[name] if name in self.record else self.record.get("settings", {}).get(name)

    @property
    def settings(self) -> dict[str, Any]:
        """Flat settings that make the run what it is: all but the seed and where it was made."""
        record = self.record
        if record["method"] == "published":
            return {"method": "published", "name": re.sub(r"[_-]?\d+$", "", record["name"])}
        flat = {key: _seedless(value) for key, value in flatten(renewed(record["config"]))}
        for key in ("method", "fill", "beta", "alpha", "temperature"):
            flat[key] = record[key]
        for key, value in (record["mask"] or {"kind": None}).items():
            flat[f"mask.{key}"] = _seedless(value)
        flat["images"] = record["id"]["n"]
        irrelevant = NOT_ZEROSHOT if record["method"] == "zeroshot" else INCIDENTAL
        kept = {key: value for key, value in sorted(flat.items()) if not irrelevant.match(key)}
        return {key: _rounded(value) for key, value in kept.items()}


def _rounded(value: Any) -> Any:
    """1 and 1.0 are one setting, and so are 0.01 and 0.1 · 0.1."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(f"{value:.12g}") if is_number else value


def _seedless(value: Any) -> Any:
    """Paths of other runs tell their seed or time; runs that differ only in that are one system."""
    if isinstance(value, list | dict):
        value = json.dumps(value)
    return SEED_OR_TIME.sub("*", value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Source:
    """A file that a report is asked to read; ``named``: by the user, rather than found in a folder or by a glob."""

    path: Path
    named: bool


def find_files(patterns: Iterable[str | Path]) -> list[Source]:
    """Find the files named or matched by `patterns`, each once; folders are searched for results.json and .jsonl.

    A folder without any is taken for one of published results (``*.jsonl``), or of copies of results (``*.json``).

    Raises:
        UserError: a pattern leads to no file.
    """
    found: dict[Path, Source] = {}
    for pattern in patterns:
        given = expand(pattern)
        exists = given.exists()
        places = [given] if exists else [Path(p) for p in glob.glob(str(given), recursive=True)]
        files: list[Path] = []
        for place in sorted(places):
            if place.is_dir():
                searches = ((place.rglob, RESULTS), (place.glob, ["*.jsonl"]), (place.glob, ["*.json"]))
                found_by = (sorted(file for name in names for file in search(name)) for search, names in searches)
                files += next(filter(None, found_by), [])
            else:
                files.append(place)
        if not files:
            what = "There is nothing at" if not places else "No results.json in"
            raise UserError(f"{what} {pattern}. Name results.json files, folders of runs, or a quoted glob.")
        for file in files:
            named = exists and file == given
            known = found.setdefault(file.resolve(), Source(file, named))
            if named and not known.named:
                found[file.resolve()] = Source(known.path, True)
    return list(found.values())


def warn(line: str) -> None:
    """Say something beside the report: on standard error."""
    print(line, file=sys.stderr)


def read_runs(patterns: Iterable[str | Path], partial: bool = False, say: Callable[[str], None] = warn) -> list[Run]:
    """Read the runs at `patterns`; those whose evaluation was cut short only where `partial`.

    Files that are no results of runs are passed over with a line, unless the user named them; runs that are copies of
    others count once.

    Args:
        say: told what is passed over.

    Raises:
        UserError: nothing found, a file named that is no results file, none that is one, only partial runs, or runs on
            different versions of a benchmark.
    """
    runs: list[Run] = []
    passed_over: list[str] = []
    for source in find_files(patterns):
        path = source.path
        try:
            runs += _read_lines(path) if path.suffix == ".jsonl" else [Run(path, read_results(path))]
        except UserError as error:
            if source.named:
                raise
            passed_over.append(str(error))
    if not runs:
        more = f" And {counted(len(passed_over) - 1, 'more file')} like it." if len(passed_over) > 1 else ""
        raise UserError(f"{passed_over[0]}{more} Nothing is left to report.")
    for line in passed_over[:SHOWN]:
        say(f"passed over: {line}")
    if len(passed_over) > SHOWN:
        left = len(passed_over) - SHOWN
        say(f"passed over: {counted(left, 'more file')} that {noun(left, 'is', 'are')} no results of runs")
    kept = [run for run in runs if partial or not run.record["partial"]]
    if not kept:
        raise UserError(
            f"{counted(len(runs), 'run')}, and partial evaluations alone (data.eval_images): --partial shows them."
        )
    runs = _without_copies(kept, say)
    refuse_mixed(runs)
    return runs


def refuse_mixed(runs: Sequence[Run]) -> None:
    """Raise a UserError where runs on one ID set were measured on different versions of its pictures."""
    first: dict[str, Run] = {}
    for run in runs:
        known = first.setdefault(run.panel[1], run)
        ours, theirs = benchmark(known.record), benchmark(run.record)
        if ours != theirs:
            raise UserError(
                f"{known.path} was measured on {ours} and {run.path} on {theirs}: other pictures, so the numbers cannot"
                " be compared. Report them apart, or run the older ones again."
            )


def _without_copies(runs: Sequence[Run], say: Callable[[str], None]) -> list[Run]:
    """The runs, each once: a results file that was copied is no second run."""
    known: dict[str, Run] = {}
    for run in runs:
        known.setdefault(json.dumps(run.record, sort_keys=True), run)
    if copies := len(runs) - len(known):
        first = next(run for run in runs if run not in known.values())
        say(f"{counted(copies, 'copy', 'copies')} of other results left out (the first: {first.path})")
    return list(known.values())


def _read_lines(path: Path) -> list[Run]:
    """One run per line: a study's, or a published one in the format of the model-soups results."""
    runs = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path} ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not valid JSON ({error}).") from error
        if isinstance(given, dict) and "schema" in given:
            if fault := find_fault(given):
                raise UserError(f"{where} is not the result of a run: {fault}.")
            runs.append(Run(path, given))
        else:
            runs.append(Run(path, _published_record(given, path.stem, where)))
    if not runs:
        raise UserError(f"{path} is empty. Expected one JSON object a line.")
    return runs


def _published_record(given: Any, file: str, where: str) -> Record:
    """The record of a published result, with None for what it does not tell."""
    try:
        shifts = {name: float(given[key]) for key, name in PUBLISHED_SETS.items() if key in given}
        score, name = float(given["ImageNet"]), str(given["model_name"])
        holdout = float(given["ImageNet2p"]) if given.get("ImageNet2p") is not None else None
    except (ValueError, TypeError, KeyError) as error:
        expected = "an object with model_name, ImageNet, ImageNetV2, … as fractions"
        raise UserError(f"{where}: {error!r}. Expected {expected}.") from error
    scores = {"id": score, **shifts}
    if not all(0 <= value <= 1 for value in [*scores.values(), *([] if holdout is None else [holdout])]):
        raise UserError(f"{where}: accuracies must be fractions in 0…1, found {scores}.")
    known = re.search(r"vit[a-z]\d+", file)
    empty = dict.fromkeys(("mask", "fill", "beta", "alpha", "temperature", "seed", "zeroshot", "checkpoint", "wall_s"))
    return {
        **empty,
        **{"name": name, "method": "published", "model": known[0] if known else "published"},
        **{"partial": False, "config": {}},
        "id": {"name": "imagenet", "top1": score, "n": None},
        "ood": {key: {"top1": value, "n": None} for key, value in shifts.items()},
        "ood_avg": sum(shifts.values()) / len(shifts) if shifts else None,
        "holdout": None if holdout is None else {"top1": holdout, "n": None},
    }


def zeroshot_runs(runs: Sequence[Run]) -> list[Run]:
    """The zero-shot models that `runs` tell of and that are not among them, each once."""
    seen = {_values(run.record) for run in runs if run.record["method"] == "zeroshot"}
    made = []
    for run in sorted(runs, key=lambda run: not run.record.get("retention")):  # those first that tell most of it
        block = run.record["zeroshot"]
        if block is None or _values(run.record | block) in seen:
            continue
        seen.add(_values(run.record | block))
        config = {key: run.record["config"][key] for key in ("model", "data") if key in run.record["config"]}
        told = schema1.display({**run.record, "method": "zeroshot", "mask": None})
        own: Record = {"name": "zero-shot", "method": "zeroshot", "config": config, "display": told, "settings": {}}
        known = run.record.get("retention") or {}
        own["retention"] = {
            name: {**one, "top1": one["zeroshot_top1"], "top1_own_text": None} for name, one in known.items()
        }
        empty = dict.fromkeys(("seed", "zeroshot", "mask", "fill", "beta", "alpha", "temperature", "checkpoint"))
        made.append(Run(run.path, {**run.record, **block, **own, **empty}))
    return made


def retention_tasks(runs: Iterable[Run]) -> list[str]:
    """The other tasks that runs were asked about, in order of appearance."""
    return list(dict.fromkeys(name for run in runs for name in run.record.get("retention") or {}))


def comparable_averages(runs: Sequence[Run]) -> list[Run]:
    """The runs, without the OOD average where a run lacks a shift set that others of its panel have.

    A mean over other sets is another quantity.
    """
    sets: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        sets.setdefault(run.panel, set()).update(run.record["ood"])
    return [
        run if set(run.record["ood"]) == sets[run.panel] else Run(run.path, {**run.record, "ood_avg": None})
        for run in runs
    ]


def _values(record: Record) -> tuple[Any, ...]:
    return record["model"], record["id"]["name"], record["id"]["top1"], record["ood_avg"]
