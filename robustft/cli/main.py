"""The command line: composes the config, checks it, chooses the run folder, and calls `experiment.run`.

Nothing heavy is imported before the config is known to be sound. Errors are shown here, outside of the runs:
a run of a sweep that fails leaves error.txt in its folder, and the others go on.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import robustft
from robustft.cli import checks, commands, compose, identity, naming, places, resuming, run_folder
from robustft.cli.plan import make_plan
from robustft.cli.sources import CONF
from robustft.common import (
    configs,
    entry,
    homes,
    imports,
    machine,
    paths,
    processes,
    signals,
    streams,
    terminal,
    threads,
)
from robustft.common.errors import FolderTaken, UserError, system_error, user_error
from robustft.common.terminal import signed
from robustft.data import ahead

log = logging.getLogger(__name__)

# Runs in other processes import this module to find `task`, and with it the resolvers.
OmegaConf.register_new_resolver("slug", naming.slug, replace=True)
OmegaConf.register_new_resolver("members", naming.members, replace=True)
OmegaConf.register_new_resolver("program", entry.program, replace=True)
OmegaConf.register_new_resolver("commands", commands.summaries, replace=True)
OmegaConf.register_new_resolver("settings", compose.listed, replace=True)

_failures: list[Exception] = []  # of a single run, shown by `main` once Hydra has finished


def main() -> int:
    """Runs the command in sys.argv; returns the exit status."""
    processes.follow()
    streams.guard()
    terminal.use_plain_letters()
    threads.sleep_early()
    processes.leave_foreign_service()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    started = time.time()
    try:
        arguments = sys.argv[1:]
        paths.refuse_line_ends(arguments)
        if "--version" in arguments:
            print(f"robustft {robustft.__version__}")
            return 0
        arguments = commands.behind_configs(arguments)
        if command := commands.find(arguments):
            if not commands.COMMANDS[command].settings:
                return commands.run(command, arguments[1:])
            arguments = [*commands.COMMANDS[command].settings, *arguments[1:]]
        plan = make_plan(arguments)
        # Lightning starts the other processes of a run with these arguments: they join it in its folder.
        sys.argv[1:] = plan.arguments
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
        if _failures:
            raise _failures.pop()
        return _report_failed(plan.sweep, started) if plan.sweep else 0
    except KeyboardInterrupt as stop:
        if processes.is_first_process():
            print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = user_error(error)
        if mistake is None and not _in_run(error):
            if isinstance(error, HydraException | OmegaConfBaseException) and not _in_task(error):
                mistake = UserError(compose.describe(error))
            elif isinstance(error, OSError):  # before a run has begun: a place that cannot be
                mistake = system_error(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 1


def task(cfg: DictConfig) -> dict[str, Any] | None:
    """One run, called by Hydra: its results, or None after an error that `main` will show."""
    processes.follow()  # of a process that a launcher started
    streams.guard()
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    sweep = hydra_config.mode == RunMode.MULTIRUN
    side_by_side = sweep and hydra_config.runtime.choices.get("hydra/launcher") != "basic"
    stamp = run_folder.settings_stamp(folder)
    logging.raiseExceptions = False  # a log file that cannot be written: the disk is full
    try:
        with signed(folder.name) if side_by_side else nullcontext():
            return run_in(cfg, folder, list(hydra_config.overrides.task), sweep=sweep)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None and isinstance(error, OSError) and not _in_run(error):
            mistake = system_error(error)
        # A run that has begun has written its settings. One that has not leaves another's folder as it was.
        others = stamp is not None and stamp == run_folder.settings_stamp(folder)
        untouched = others or isinstance(mistake, FolderTaken)
        if processes.is_first_process():
            if mistake is not None and not sweep and run_folder.leave_nothing(folder):
                untouched = True
            else:
                text = str(mistake) if mistake else traceback.format_exc()
                run_folder.leave_error(folder, text, untouched=untouched)
        with run_folder.log_to_screen_alone() if untouched else nullcontext():
            if not sweep:
                _failures.append(error)
            elif mistake:
                log.error("%s failed: %s", folder.name, mistake)
            else:
                log.exception("%s failed", folder.name)
        return None


def run_in(cfg: DictConfig, folder: Path, typed: list[str], *, sweep: bool = False) -> dict[str, Any] | None:
    """A composed config to its results in ``folder``; ``typed`` is what was asked for, kept for resuming.

    Raises:
        FolderTaken: the folder is another run's, finished, interrupted, or at work there now. It is left as it was.
    """
    # What is typed for a sweep has been looked at for all of its runs together.
    checks.check(cfg, None if sweep else compose.texts(compose.parse(typed)))
    checks.check_started(cfg)
    name = folder.name if sweep else naming.name(cfg)
    identity.resolve(cfg, sweep=sweep)
    if sweep and resuming.is_finished(folder):
        return _finished_before(cfg, folder, name)
    first = processes.is_first_process()
    with run_folder.held(folder) if first else nullcontext():
        if sweep and resuming.is_finished(folder):  # by another process, just now
            return _finished_before(cfg, folder, name)
        with open_dict(cfg):
            if sweep:
                cfg.resume = resuming.newest_interrupted(cfg, [folder])
            cfg.resume = str(folder) if cfg.resume else None  # what is continued is always this folder
            cfg.run_dir, cfg.run_name = str(folder), name
            if cfg.resume:
                resuming.refuse_damaged(folder)
                identity.take_recorded(cfg, resuming.saved_config(folder) or {})
            if cfg.threads is None:
                cfg.threads = threads.choose(cfg.model.recipe.get("threads"), _processes_here(cfg))
            threads.use(cfg.threads)
        if not first:
            logging.getLogger("robustft").setLevel(logging.WARNING)  # the first one speaks for all
        elif cfg.resume:  # what started the run stays on record
            run_folder.begin(folder, cfg, resuming.saved_overrides(folder))
        else:
            if sweep:
                run_folder.refuse_other_run(cfg, folder)
            else:
                run_folder.refuse_taken(cfg, folder)
                if cfg.overwrite:  # here the folder is known, whatever was typed for it
                    run_folder.refuse_own_models(cfg, folder)
            run_folder.begin(folder, cfg, typed)
        log.info("%s%s", "continuing " if cfg.resume else "", paths.readable(folder))

        homes.stand_in()
        if first and not sweep:  # the others have the cores already
            ahead.begin(places.class_folders(cfg))
        imports.quickly("robustft.experiment")  # torch, lightning and open_clip take seconds
        from robustft import experiment

        with _interruptions(folder, sweep=sweep), run_folder.disk_errors(folder, sweep=sweep):
            return experiment.run(cfg)


def _processes_here(cfg: DictConfig) -> int:
    """How many processes of the run compute on this machine's CPU."""
    several = configs.device_count(cfg.trainer.devices) or 1  # auto and all are one on a CPU
    accelerator = cfg.trainer.accelerator
    return several if accelerator == "cpu" or (accelerator == "auto" and not machine.has_accelerator()) else 1


def _finished_before(cfg: DictConfig, folder: Path, name: str) -> dict[str, Any]:
    """The results of a sweep's run that has been finished before; nothing in its folder changes."""
    advice = "Name another sweep with sweep=..., or delete the folder"
    resuming.refuse_other_config(cfg, folder, f"the finished run in {folder}", advice)
    with run_folder.log_to_screen_alone():
        log.info("%s: finished before, skipped", name)
    return json.loads((folder / "results.json").read_text())


@contextmanager
def _interruptions(folder: Path, *, sweep: bool) -> Iterator[None]:
    """SIGTERM and a closed terminal's SIGHUP count as Ctrl-C; what is raised says how to go on."""
    main_thread = threading.current_thread() is threading.main_thread()
    try:
        with signals.handled(signal.default_int_handler) if main_thread else nullcontext():
            yield
    except (KeyboardInterrupt, SystemExit) as stop:
        # Outside of training steps Lightning turns the one into the other.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        what = str(stop) if str(stop).startswith("interrupted") else "interrupted"
        if sweep:
            how = "Go on with the sweep by the same command"
        elif run_folder.can_go_on(folder):
            how = f"Resume with: {entry.program()} {paths.typed('resume', paths.readable(folder))}"
        else:
            how = "Nothing was kept yet to resume from"
        raise KeyboardInterrupt(f"{what}. {how}") from None


def _report_failed(folder: Path, started: float) -> int:
    """Lists the runs of a sweep that failed just now or were left to another process; the exit status."""
    paths = [path for path in sorted(folder.glob("**/error.txt")) if path.stat().st_mtime >= started - 1]
    errors = {path.parent: path.read_text() for path in paths} | run_folder.read_notes(folder)
    if errors:
        print(f"{len(errors)} of the runs in {folder} failed:", file=sys.stderr)
    for path, text in errors.items():
        print(f"  {os.path.relpath(path, folder)}: {text.strip().splitlines()[-1]}", file=sys.stderr)
    return 1 if errors else 0


def _in_task(error: BaseException) -> bool:
    """Whether an error comes out of a run: Hydra's errors there are faults of the program."""
    return any(frame.f_code is task.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _in_run(error: BaseException) -> bool:
    """Whether an error comes out of the work of a run, not of what is done before it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(frame.f_globals.get("__name__") == "robustft.experiment" for frame in frames)
