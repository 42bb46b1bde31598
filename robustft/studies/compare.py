"""`robustft compare METHODS...`: which method, on your data? The same budget, hold-out selection and seeds for each.

    robustft compare finetune counterfactual wiseft data=folders data.train=DIR
    robustft compare counterfactual counterfactual,mask=none beta=0.3,1,3 --seeds 5

Each method goes over the values of its dial (`takes.dial` of its YAML: beta, alpha ...). The tables, the picture and a
sentence on what to use are written beside the results; what is finished is not run again.
"""

import argparse
import difflib
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import open_dict

from robustft.cli import compose, naming, sources
from robustft.cli.settings import Description, Settings
from robustft.common import entry, files, machine, paths, signals, terminal
from robustft.common.errors import UserError
from robustft.common.wording import counted
from robustft.studies import store
from robustft.studies.choice import System, choose
from robustft.studies.main import tables
from robustft.studies.study import Entry, Study

VANILLA = "finetune"  # what others are compared with, and whose model those start from that need one
SHARES = (0.25, 0.5, 0.75)  # of a dial's range, where it has two ends
TIMES = (0.3, 1, 3)  # a dial's own value, where it has not
FOLDER = naming.RUNS / "compare"


@dataclass(frozen=True)
class Candidate:
    """A method with settings of its own, as it is typed: counterfactual,mask=none.

    Attributes:
        dial: the setting that it is compared over; None: it has none, or that is typed with one value.
        values: of the dial.
        needs_model: it works on the vanilla model of the same seed.
    """

    typed: str
    settings: tuple[str, ...]
    dial: str | None
    values: tuple[float, ...]
    needs_model: bool

    def name(self, value: float | None, seed: int) -> str:
        at = "" if value is None else f"_{naming.slug(str(self.dial).rpartition('.')[2])}-{value:g}"
        return f"{naming.settings_name(self.typed.split(','))}{at}_seed-{seed}"

    def entries(self, seed: int, keep: bool) -> Iterator[Entry]:
        model = (f"checkpoint={{{VANILLA}_seed-{seed}}}",) if self.needs_model else ()
        for value in self.values if self.dial else (None,):
            dial = () if value is None else (f"{self.dial}={value:g}",)
            yield Entry(self.name(value, seed), (*self.settings, *model, *dial, f"seed={seed}"), keep=keep)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=entry.program("compare"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="+", metavar="METHOD | setting=value", help="methods, with settings of their own behind commas"
        " (kd,mask=object), and settings for all of them; of a dial several values (beta=0.3,1,3)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each, seeds 1 to N (default: 3)")
    parser.add_argument("--jobs", type=int, help="runs at a time, one thread each (default: one per CPU; 1 with a GPU)")
    parser.add_argument("--out", type=paths.expand, metavar="DIR", help=f"for results (default: {FOLDER}/<settings>)")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with configs of your own, as a run takes it")
    return parser.parse_intermixed_args(list(arguments))


def main(arguments: Sequence[str]) -> int:
    """Run what has no result yet, write tables, picture and verdict, and say what to use; the exit status."""
    given = parse(arguments)
    with signals.handled(signal.default_int_handler):
        try:
            _compare(given)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on") from None
    return 0


def _compare(given: argparse.Namespace) -> None:
    if given.seeds < 1 or (given.jobs is not None and given.jobs < 1):
        raise UserError(f"--seeds={given.seeds} --jobs={given.jobs or 1}: give one or more of each")
    if given.config_dir:
        sources.add(given.config_dir)
    methods = [word for word in given.words if "=" not in word.partition(",")[0]]
    candidates, settings = plan(methods, [word for word in given.words if word not in methods])
    seeds = range(1, given.seeds + 1)
    entries = [made for seed in seeds for one in candidates for made in one.entries(seed, keep=_kept(one, candidates))]
    folder = given.out or FOLDER / (naming.settings_name(sorted(settings)) or "default")
    paths.make_folder(folder, "--out")
    jobs = given.jobs or (1 if machine.has_accelerator() else os.cpu_count() or 1)
    study = Study(entries, folder.resolve(), settings, work=folder.resolve() / "runs")
    _announce(candidates, study, given.seeds)
    results = study.finish(jobs, math.inf)
    base = next((one for one in candidates if one.typed == VANILLA), candidates[0])
    tables(folder, results, baselines=[base.name(base.values[0] if base.dial else None, 1)])
    systems = [
        System(one.typed, value, {seed: results[one.name(value, seed)] for seed in seeds}, one is base)
        for one in candidates
        for value in (one.values if one.dial else (None,))
    ]
    text, sentence = choose(systems)
    files.write(folder / "verdict.md", f"{text}\n{sentence}\n")
    console = terminal.console()
    terminal.print_markdown(console, text)
    console.print(
        f"Written to {folder}: verdict.md, comparison.md, scatter.png, {store.FILE}", markup=False, highlight=False
    )
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _kept(one: Candidate, candidates: Sequence[Candidate]) -> bool:
    """Whether others work on the models of a candidate."""
    return one.typed == VANILLA and any(other.needs_model for other in candidates)


def plan(methods: Sequence[str], settings: Sequence[str]) -> tuple[list[Candidate], list[str]]:
    """The candidates, vanilla fine-tuning among them where another one needs its model, and the settings of all.

    Raises:
        UserError: no or an unknown method, a setting that every run has of its own or that has several values and is no
            dial.
    """
    if not methods:
        raise UserError(f"compare: name the methods, as in {entry.program('compare')} finetune counterfactual")
    parsed = compose.parse(settings)
    several = {one.key_or_group: compose.values(one) for one in parsed if one.is_sweep_override()}
    common = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    fixed = {one.key_or_group for one in parsed}
    for name, words in {"seed": "--seeds N", "method": "its name", "hydra.run.dir": "--out DIR"}.items():
        if name in fixed:
            raise UserError(f"{name}: compare chooses it for every run; give {words}")
    found = [candidate(one, common, several, fixed) for one in dict.fromkeys(methods)]
    if any(one.needs_model for one in found) and not any(one.typed == VANILLA for one in found):
        found.insert(0, candidate(VANILLA, common, several, fixed))
    if unused := [name for name in several if name not in {one.dial for one in found}]:
        dials = ", ".join(dict.fromkeys(str(one.dial) for one in found if one.dial)) or "none"
        raise UserError(
            f"{unused[0]}={','.join(several[unused[0]])}: several values are for a method's dial, here {dials}; give it"
            " one value"
        )
    return found, common


def candidate(typed: str, common: Sequence[str], several: Mapping[str, Sequence[str]], fixed: set[str]) -> Candidate:
    """A method with the values of its dial that it is compared over.

    Args:
        common: settings for all.
        several: values that are typed for dials.
        fixed: what is typed for all.

    Raises:
        UserError: there is no such method, or it cannot do without what nobody gives.
    """
    method, *own = typed.split(",")
    known = sources.groups()["method"]
    if method not in known:
        near = difflib.get_close_matches(method, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{method}: no such method.{hint} Methods: {', '.join(known)}")
    settings = (f"method={method}", *own)
    cfg = compose.compose_first(compose.parse([*common, *settings]))
    with open_dict(cfg):
        cfg.pop("hydra", None)
    read, here = Settings(cfg), {setting.partition("=")[0] for setting in own}
    takes: dict[str, Any] = read.takes.get("method", {})
    lacks = [name for name in takes.get("needs") or () if read.values.get(name) is None and name != "checkpoint"]
    if lacks:
        raise UserError(f"{method} needs {lacks[0]}: give it behind a comma, {method},{lacks[0]}=...")
    needs_model = "checkpoint" in (takes.get("needs") or ()) and read.values.get("checkpoint") is None
    dial = takes.get("dial")
    if dial is None or dial in here or (dial in fixed and dial not in several) or not read.matters(dial):
        return Candidate(typed, settings, None, (), needs_model)
    if dial in several:
        values = tuple(_number(dial, value) for value in several[dial])
    else:
        values = _spread(read.values.get(dial), [one for _, one in read.descriptions(dial)])
    return Candidate(typed, settings, dial if values else None, values, needs_model)


def _spread(value: Any, described: Sequence[Description]) -> tuple[float, ...]:
    """Values of a dial: quarters of its range, else its own value, a third and three times of it; none: it is fixed."""
    for one in described:
        low, high = one.get("from", one.get("above")), one.get("to", one.get("below"))
        if low is not None and high is not None:
            return tuple(low + share * (high - low) for share in SHARES)
    if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
        return ()
    return tuple(float(f"{value * times:.3g}") for times in TIMES)


def _number(dial: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"{dial}={value}: expected a number") from error


def _announce(candidates: Sequence[Candidate], study: Study, seeds: int) -> None:
    """Say what will be run, before time is spent."""
    over = [
        one.typed + (f" ({one.dial} = {', '.join(f'{value:g}' for value in one.values)})" if one.dial else "")
        for one in candidates
    ]
    left = len(study.to_run())
    done = f", {len(study.entries) - left} of them finished before" if left < len(study.entries) else ""
    print(f"{counted(len(study.entries), 'run')}{done}: {'; '.join(over)}; {counted(seeds, 'seed')} each")
    if VANILLA not in {one.typed for one in candidates}:
        print(f"differences are to {candidates[0].typed}; add {VANILLA} to see what others gain over it")
