"""The command line: composes the config, checks it, chooses the run folder, and calls `experiment.run`.

Nothing heavy is imported before the config is known to be sound. Errors are shown here, outside of the runs:
a run of a sweep that fails leaves error.txt in its folder, and the others go on.
"""

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import robustft
from robustft import (
    commands,
    config,
    configs,
    homes,
    overrides,
    paths,
    processes,
    run_folder,
    runs,
    signals,
    streams,
    terminal,
    threads,
)
from robustft.errors import FolderTaken, UserError, system_error, user_error

log = logging.getLogger(__name__)

# Runs in other processes import this module to find `task`, and with it the resolvers.
OmegaConf.register_new_resolver("slug", runs.slug, replace=True)
OmegaConf.register_new_resolver("program", commands.program, replace=True)
OmegaConf.register_new_resolver("commands", commands.summaries, replace=True)

_failures: list[Exception] = []  # of a single run, shown by `main` once Hydra has finished


@dataclass(frozen=True)
class Plan:
    """What is handed to Hydra."""

    arguments: list[str]
    sweep: Path | None  # folder of the sweep


def main() -> int:
    """Runs the command in sys.argv; returns the exit status."""
    streams.guard()
    terminal.use_plain_letters()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    started = time.time()
    try:
        arguments = sys.argv[1:]
        paths.refuse_line_ends(arguments)
        if "--version" in arguments:
            print(f"robustft {robustft.__version__}")
            return 0
        if command := commands.find(arguments):
            if not commands.COMMANDS[command].settings:
                return commands.run(command, arguments[1:])
            arguments = [*commands.COMMANDS[command].settings, *arguments[1:]]
        plan = _plan(arguments)
        # Lightning starts the other processes of a run with these arguments: they join it in its folder.
        sys.argv[1:] = plan.arguments
        hydra.main(config_path=str(overrides.CONF), config_name="config", version_base="1.3")(task)()
        if _failures:
            raise _failures.pop()
        return _report_failed(plan.sweep, started) if plan.sweep else 0
    except KeyboardInterrupt as stop:
        if processes.is_first():
            print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = user_error(error)
        if mistake is None and not _in_run(error):
            if isinstance(error, HydraException | OmegaConfBaseException) and not _in_task(error):
                mistake = UserError(overrides.describe(error))
            elif isinstance(error, OSError):  # before a run has begun: a place that cannot be
                mistake = system_error(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 1


def task(cfg: DictConfig) -> dict[str, Any] | None:
    """One run, called by Hydra: its results, or None after an error that `main` will show."""
    streams.guard()  # of a process that a launcher started
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    sweep = hydra_config.mode == RunMode.MULTIRUN
    side_by_side = sweep and hydra_config.runtime.choices.get("hydra/launcher") != "basic"
    stamp = run_folder.settings_stamp(folder)
    logging.raiseExceptions = False  # a log file that cannot be written: the disk is full
    try:
        with _signed(folder.name) if side_by_side else nullcontext():
            return run_in(cfg, folder, list(hydra_config.overrides.task), sweep=sweep)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None and isinstance(error, OSError) and not _in_run(error):
            mistake = system_error(error)
        # A run that has begun has written its settings. One that has not leaves another's folder as it was.
        others = stamp is not None and stamp == run_folder.settings_stamp(folder)
        untouched = others or isinstance(mistake, FolderTaken)
        if processes.is_first():
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
    config.check(cfg, None if sweep else overrides.texts(overrides.parse(typed)))
    config.check_started(cfg)
    name = folder.name if sweep else runs.name(cfg)
    config.resolve(cfg, sweep=sweep)
    if sweep and runs.is_finished(folder):
        return _finished_before(cfg, folder, name)
    first = processes.is_first()
    with run_folder.held(folder) if first else nullcontext():
        if sweep and runs.is_finished(folder):  # by another process, just now
            return _finished_before(cfg, folder, name)
        with open_dict(cfg):
            if sweep:
                cfg.resume = runs.newest_interrupted(cfg, [folder])
            cfg.resume = str(folder) if cfg.resume else None  # what is continued is always this folder
            cfg.run_dir, cfg.run_name = str(folder), name
            if cfg.resume:
                config.take_recorded(cfg, runs.saved_config(folder) or {})
            if cfg.threads is None:
                cfg.threads = threads.choose(cfg.model.recipe.get("threads"), _processes_here(cfg))
            threads.use(cfg.threads)
        if not first:
            logging.getLogger("robustft").setLevel(logging.WARNING)  # the first one speaks for all
        elif cfg.resume:  # what started the run stays on record
            run_folder.begin(folder, cfg, runs.saved_overrides(folder))
        else:
            if sweep:
                run_folder.refuse_other_run(cfg, folder)
            else:
                run_folder.refuse_taken(folder, overwrite=cfg.overwrite)
            run_folder.begin(folder, cfg, typed)
        log.info("%s%s", "continuing " if cfg.resume else "", run_folder.readable(folder))

        homes.stand_in()
        from robustft import experiment  # torch, lightning and open_clip take seconds to import

        with _interruptions(folder, sweep=sweep), run_folder.disk_errors(folder, sweep=sweep):
            return experiment.run(cfg)


def _processes_here(cfg: DictConfig) -> int:
    """How many processes of the run compute on this machine's CPU."""
    devices = cfg.trainer.devices
    return devices if cfg.trainer.accelerator == "cpu" and isinstance(devices, int) and devices > 0 else 1


def _finished_before(cfg: DictConfig, folder: Path, name: str) -> dict[str, Any]:
    """The results of a sweep's run that has been finished before; nothing in its folder changes."""
    advice = "Name another sweep with sweep=..., or delete the folder"
    runs.refuse_other_config(cfg, folder, f"the finished run in {folder}", advice)
    with run_folder.log_to_screen_alone():
        log.info("%s: finished before, skipped", name)
    return json.loads((folder / "results.json").read_text())


class _Signed(logging.Formatter):
    """Begins every line with the name of the run that says it."""

    def __init__(self, name: str) -> None:
        super().__init__("%(message)s")
        self.name = name

    def format(self, record: logging.LogRecord) -> str:
        sign = f"{self.name}: "
        return "\n".join(sign + line.removeprefix(sign) for line in super().format(record).splitlines())


@contextmanager
def _signed(name: str) -> Iterator[None]:
    """Runs side by side talk into one terminal: each signs its lines."""
    terminals = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    before = [handler.formatter for handler in terminals]
    for handler in terminals:
        handler.setFormatter(_Signed(name))
    try:
        yield
    finally:
        for handler, formatter in zip(terminals, before, strict=True):
            handler.setFormatter(formatter)


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
        elif runs.is_interrupted(folder):
            how = f"Resume with: {commands.program()} {paths.typed('resume', run_folder.readable(folder))}"
        else:
            how = "Nothing was kept yet to resume from"
        raise KeyboardInterrupt(f"{what}. {how}") from None


def _plan(arguments: list[str]) -> Plan:
    """Checks what was typed and adds to it where the run or the sweep goes."""
    args = get_args_parser().parse_intermixed_args(arguments)
    if args.config_name or args.config_path or args.experimental_rerun:
        raise UserError("configs come from conf/: for configs of your own, give their folder: --config-dir DIR")
    if args.config_dir:
        arguments = _with_configs(arguments, args.config_dir)
    if args.help or args.hydra_help or args.shell_completion or args.info:
        return Plan(arguments, None)
    flags = [argument for argument in arguments if argument not in args.overrides]
    parsed = overrides.parse(args.overrides)
    resume = _value(parsed, "resume")
    if resume not in (None, "null", "auto"):
        folder = paths.expand(resume)
        if folder.name == "last.ckpt" and folder.is_file():
            folder = folder.parent
        resume = str(folder)
        runs.check_resumable(folder)
        own_configs = configs.recorded(folder) if not args.config_dir else None
        if own_configs:
            flags = [*_with_configs([], str(own_configs)), *flags]
            parsed = overrides.parse(args.overrides)
        keys = {override.key_or_group for override in parsed}
        before = overrides.parse(runs.saved_overrides(folder))
        parsed = [override for override in before if override.key_or_group not in keys] + parsed
    cfg = overrides.compose_first(parsed)
    lines = [str(override.input_line) for override in parsed]
    if args.cfg:
        return Plan([*flags, *lines], None)
    with open_dict(cfg):
        hydra_config = cfg.pop("hydra")
    if args.multirun or hydra_config.mode == RunMode.MULTIRUN:
        added, folder = _plan_sweep(cfg, hydra_config, parsed)
        return Plan([*flags, *lines, *added], folder)
    return Plan([*flags, *lines, *_plan_single(cfg, parsed, resume)], None)


def _plan_single(cfg: DictConfig, parsed: list[Override], resume: str | None) -> list[str]:
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: several values make a sweep: add -m")
    config.check(cfg, overrides.texts(parsed))
    config.check_started(cfg)
    config.resolve(cfg)
    given = _value(parsed, "hydra.run.dir")
    for character in '=,"':
        if given is not None and character in given:
            raise UserError(f"hydra.run.dir={given}: the name holds {character!r}, with which it cannot be typed back")
    given = None if given is None else str(paths.expand(given))
    launcher = processes.launched_together()
    if launcher and given is None and resume in (None, "null", "auto"):
        raise UserError(f"{launcher} starts every process by itself: give them all one folder with hydra.run.dir=DIR")
    if cfg.overwrite and resume not in (None, "null", "auto"):
        raise UserError(f"resume={resume} goes on in that folder: leave out overwrite=true")
    if cfg.overwrite and (cfg.check is not None or cfg.prepare):
        raise UserError("overwrite=true replaces a run: leave it out where nothing is run (check=, prepare=)")
    if resume in (None, "null"):
        _check_folder(cfg, given)
        return [_placed("hydra.run.dir", given or runs.new_folder(cfg))]
    if resume == "auto":
        candidates = [Path(given)] if given else list((runs.RUNS / runs.name(cfg)).glob("*"))
        found = run_folder.newest_resumable(cfg, [path for path in candidates if path.is_dir()])
        if found is None:
            _check_folder(cfg, given)
            print("resume=auto: found no interrupted run with this config, starting a new one")
            return ["resume=null", _placed("hydra.run.dir", given or runs.new_folder(cfg))]
        return [f"resume={paths.quote(found)}", _placed("hydra.run.dir", found)]
    folder = paths.expand(str(resume))
    if given is not None and Path(given).resolve() != folder.resolve():
        raise UserError(f"resume={resume} goes on in that folder: leave out hydra.run.dir")
    advice = "Go on with its own settings (resume=FOLDER alone takes them), or start a new run"
    runs.refuse_other_config(cfg, folder, f"the run in {folder}", advice)
    if processes.is_first():
        run_folder.refuse_in_use(folder)
    return [_placed("hydra.run.dir", folder)]


def _placed(key: str, folder: Path | str) -> str:
    """The setting that puts a run or a sweep into a folder, which is made if it can be."""
    if "${" not in str(folder):  # else Hydra puts the rest of the name in
        paths.make_folder(Path(folder), key)
    return f"{key}={paths.quote(folder)}"


def _with_configs(arguments: list[str], typed: str) -> list[str]:
    """The arguments with the user's folder of configs in one form: absolute, for all processes of a run."""
    configs.add(typed)
    left = iter(arguments)
    kept = []
    for argument in left:
        name = argument.partition("=")[0]
        if name == "-cd" or name.startswith("--config-d"):
            if "=" not in argument:
                next(left)
        else:
            kept.append(argument)
    return [f"--config-dir={configs.added()}", *kept]


def _check_folder(cfg: DictConfig, given: str | None) -> None:
    """Refuses a typed folder that is another run's, before Hydra opens a log there."""
    if given is None or not processes.is_first():  # the first process has made it its own already
        return
    run_folder.refuse_in_use(Path(given))
    run_folder.refuse_taken(Path(given), overwrite=cfg.overwrite)
    if cfg.overwrite:
        run_folder.refuse_own_models(cfg, Path(given))


def _plan_sweep(cfg: DictConfig, hydra_config: DictConfig, parsed: list[Override]) -> tuple[list[str], Path]:
    if _value(parsed, "resume") not in (None, "null", "auto"):
        raise UserError("resume=FOLDER is for single runs: a sweep goes on by the same command")
    if launcher := processes.launched_together():
        raise UserError(f"{launcher} would start the whole sweep in each of its processes: start it once, without")
    slurm = hydra_config.launcher._target_.endswith("SlurmLauncher")
    if slurm and shutil.which("srun") is None:
        raise UserError("hydra/launcher=slurm: found no srun here. Start it on a login node of the cluster")
    _check_devices(cfg, own_process=slurm)
    if cfg.overwrite:
        raise UserError("overwrite=true is for single runs: name another sweep with sweep=..., or delete its folder")
    _check_jobs(hydra_config)
    typed = {override.key_or_group: override for override in parsed}
    preset = hydra_config.sweeper.get("params") or {}
    swept = [key for key in preset if key not in typed]
    swept += [key for key, override in typed.items() if override.is_sweep_override()]
    choices = hydra_config.runtime.choices
    named = _value(parsed, "sweep") not in (None, "null") or "hydra.sweep.dir" in typed
    plain = choices.get("hydra/launcher") == "basic" and choices.get("hydra/sweeper") in ("basic", "combinations")
    if plain and not swept and not named:
        raise UserError("-m: nothing is swept. Give a setting several values, as in seed=1,2, or leave out -m")
    own = [key for key in typed if key not in swept and not key.startswith("hydra")]
    constants = [
        str(typed[key].input_line)
        for key in own
        if key not in ("experiment", "logger") and not config.INCIDENTAL.fullmatch(key)
    ]
    name = _value(parsed, "sweep")
    if name in (None, "null"):
        choice = hydra_config.runtime.choices.get("experiment")
        name = runs.sweep_name(choice if preset else None, swept, constants)
    elif runs.slug(name) != name:
        raise UserError(f"sweep={name}: a name is made of letters, digits, dots, dashes and underscores")
    folder = paths.expand(_value(parsed, "hydra.sweep.dir") or runs.SWEEPS / name)
    added = [f"sweep={paths.quote(name)}", _placed("hydra.sweep.dir", folder)]
    os.environ[run_folder.NOTES] = notes = str(run_folder.notes_folder(folder.absolute()))
    added.append(f"+hydra.job.env_set.{run_folder.NOTES}={paths.quote(notes)}")  # reaches runs in other processes
    if "hydra.sweep.subdir" not in typed:
        first = folder / runs.job_folder(swept, cfg, {k: hydra_config.runtime.choices[k] for k in overrides.groups()})
        _refuse_other_sweep(cfg, first)
        added.append(f"hydra.sweep.subdir={paths.quote(runs.job_name(swept, list(overrides.groups())))}")
    if not swept:
        print(f"nothing is swept: one run, in {run_folder.readable(folder)}")
    skip = _skipped(parsed, preset, swept)
    if hydra_config.runtime.choices.get("hydra/sweeper") != "combinations":
        skip = []  # a sweeper of another kind
    return added + ([f"hydra.sweeper.skip={skip}"] if skip else []), folder


def _skipped(parsed: list[Override], preset: DictConfig | dict[str, Any], swept: list[str]) -> list[int]:
    """Checks what all jobs of a sweep make of its settings; the positions of those that repeat another."""
    of_preset = overrides.parse([f"{key}={value}" for key, value in preset.items() if key in swept])
    asked = [override for override in (*of_preset, *parsed) if not override.key_or_group.startswith("hydra")]
    jobs = overrides.jobs(asked)
    cfgs = [job.cfg for job in jobs]
    config.refuse_idle(cfgs, overrides.texts(asked), sweep=True)
    if any(not overrides.values(override) or override.is_interval_sweep() for override in asked):
        return []  # values are drawn as the sweep goes on
    first = config.distinct(cfgs)
    skip = [number for number, same in enumerate(first) if same != number]
    for number in skip:
        one, other = (runs.readable_name(jobs[n].choices, swept) for n in (number, first[number]))
        print(f"{one}: the same run as {other}, which is made once")
    return skip


def _refuse_other_sweep(cfg: DictConfig, first: Path) -> None:
    """Refuses a sweep whose first run has been made with other settings, before anything in its folder changes."""
    cfg = deepcopy(cfg)
    try:
        config.check(cfg)
        config.resolve(cfg, sweep=True)
    except UserError:  # a run that cannot work is refused when its turn comes: others may
        return
    run_folder.refuse_other_run(cfg, first)


def _check_devices(cfg: DictConfig, *, own_process: bool) -> None:
    """Refuses several devices where the other processes of a run would start the whole sweep again."""
    devices = cfg.trainer.devices
    several = devices not in ("auto", 1, "1") and not (OmegaConf.is_list(devices) and len(devices) == 1)
    if (several or cfg.trainer.num_nodes > 1) and not own_process:
        raise UserError(
            f"trainer.devices={devices}: a run of a sweep takes one device here."
            " Use hydra/launcher=slurm, or start the runs one by one"
        )


def _check_jobs(hydra_config: DictConfig) -> None:
    """Refuses numbers of runs at a time that are none; below 0 they count from the number of CPUs, as joblib's do."""
    for name in ("launcher.n_jobs", "sweeper.n_jobs"):
        jobs = OmegaConf.select(hydra_config, name)
        if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs == 0):
            raise UserError(f"hydra.{name}={jobs}: expected how many runs go side by side, 1 or more (-1: one per CPU)")


def _report_failed(folder: Path, started: float) -> int:
    """Lists the runs of a sweep that failed just now or were left to another process; the exit status."""
    paths = [path for path in sorted(folder.glob("**/error.txt")) if path.stat().st_mtime >= started - 1]
    errors = {path.parent: path.read_text() for path in paths} | run_folder.read_notes(folder)
    if errors:
        print(f"{len(errors)} of the runs in {folder} failed:", file=sys.stderr)
    for path, text in errors.items():
        print(f"  {os.path.relpath(path, folder)}: {text.strip().splitlines()[-1]}", file=sys.stderr)
    return 1 if errors else 0


def _value(parsed: list[Override], key: str) -> str | None:
    """The last value typed for a setting, as text."""
    single = [override for override in parsed if not override.is_sweep_override()]
    found = [override.value() for override in single if override.key_or_group == key]
    return str(found[-1]) if found and found[-1] is not None else None


def _in_task(error: BaseException) -> bool:
    """Whether an error comes out of a run: Hydra's errors there are faults of the program."""
    return any(frame.f_code is task.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _in_run(error: BaseException) -> bool:
    """Whether an error comes out of the work of a run, not of what is done before it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(frame.f_globals.get("__name__") == "robustft.experiment" for frame in frames)
