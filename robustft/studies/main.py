"""A study: many runs, one command, results that stay. The folders under experiments/ are made of it.

    python experiments/<study>/study.py [--jobs 2] [setting=value ...]
    python experiments/<study>/study.py --cost [setting=value ...]      # what that would take; see cost.py

Every run's results.json becomes a line of ``results.jsonl`` beside the study's file, and a run that has one there is
not run again, so a long study can be spread over several sittings; an interrupted run goes on from its last state.
Everything else a run leaves (gallery, log, weights) is under runs/studies/. Settings on the command line apply to
every run; the results then go to a folder of their own: the same study on other models and data.
"""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from robustft.cli import compose, naming
from robustft.common import signals, streams, terminal, threads
from robustft.common.errors import UserError, system_error
from robustft.studies import store
from robustft.studies.store import Results
from robustft.studies.study import Entry, Study


def main(
    file: str,
    entries: Callable[[DictConfig], Iterable[Entry]],
    summarise: Callable[[Path, Results], None],
    then: Callable[[DictConfig, Results], Iterable[Entry]] | None = None,
) -> None:
    """Run the command of the study in ``file``.

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
    threads.sleep_early()
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
            folder = folder / naming.settings_name(arguments.settings)
        cfg = compose.compose_first(compose.parse(arguments.settings))
        end = time.monotonic() + 60 * limit
        chosen = list(entries(cfg))
        if arguments.cost:
            from robustft.studies.cost import show

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
        UserError: no system fits a baseline, or the folder cannot be written to.
    """
    from robustft.report.__main__ import compare, parse
    from robustft.report.runs import Run

    file = folder / store.FILE
    shown = [Run(file, record) for name, record in results.items() if not name.startswith(leave_out)]
    options = [part for name in baselines for part in ("--baseline", name)]
    compare(shown, parse([str(file), *options, "--out", str(folder)]), terminal.console())
