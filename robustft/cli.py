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

from robustft import config, files, overrides, processes, runs
from robustft.errors import UserError, user_error

log = logging.getLogger(__name__)

# Runs in other processes import this module to find `task`, and with it the resolver.
OmegaConf.register_new_resolver("slug", runs.slug, replace=True)

_failures: list[Exception] = []  # of a single run, shown by `main` once Hydra has finished


@dataclass(frozen=True)
class Plan:
    """What is handed to Hydra."""

    arguments: list[str]
    sweep: Path | None  # folder of the sweep


def main() -> int:
    """Runs the command in sys.argv; returns the exit status."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    started = time.time()
    try:
        plan = _plan(sys.argv[1:])
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
        hydras = isinstance(error, HydraException | OmegaConfBaseException)
        if mistake is None and hydras and not _in_task(error):
            mistake = UserError(overrides.describe(error))
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 1


def task(cfg: DictConfig) -> dict[str, Any] | None:
    """One run, called by Hydra: its results, or None after an error that `main` will show."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    sweep = hydra_config.mode == RunMode.MULTIRUN
    side_by_side = sweep and hydra_config.runtime.choices.get("hydra/launcher") != "basic"
    try:
        with _signed(folder.name) if side_by_side else nullcontext():
            return run_in(cfg, folder, list(hydra_config.overrides.task), sweep=sweep)
    except Exception as error:
        mistake = user_error(error)
        if processes.is_first():
            text = str(mistake) if mistake else traceback.format_exc()
            files.write(folder / "error.txt", text.rstrip() + "\n")
        if not sweep:
            _failures.append(error)
        elif mistake:
            log.error("%s failed: %s", folder.name, mistake)
        else:
            log.exception("%s failed", folder.name)
        return None


def run_in(cfg: DictConfig, folder: Path, typed: list[str], *, sweep: bool = False) -> dict[str, Any] | None:
    """A composed config to its results in ``folder``; ``typed`` is what was asked for, kept for resuming."""
    # What is typed for a sweep has been looked at for all of its runs together.
    config.check(cfg, None if sweep else overrides.texts(overrides.parse(typed)))
    config.check_started(cfg)
    name = folder.name if sweep else runs.name(cfg)
    config.resolve(cfg, sweep=sweep)
    if sweep and runs.is_finished(folder):
        advice = "Name another sweep with sweep=..., or delete the folder"
        runs.refuse_other_config(cfg, folder, f"the finished run in {folder}", advice)
        (folder / "error.txt").unlink(missing_ok=True)
        log.info("%s: finished before, skipped", name)
        return json.loads((folder / "results.json").read_text())
    with open_dict(cfg):
        if sweep:
            cfg.resume = runs.newest_interrupted(cfg, [folder])
        cfg.resume = str(folder) if cfg.resume else None  # what is continued is always this folder
        cfg.run_dir, cfg.run_name = str(folder), name
    if not processes.is_first():
        logging.getLogger("robustft").setLevel(logging.WARNING)  # the first one speaks for all
    else:
        if cfg.resume:  # what started the run stays on record
            typed = runs.saved_overrides(folder)
        runs.save(folder, cfg, [line for line in typed if not line.startswith(("resume=", "sweep="))])
        stale = ["results.json", "error.txt"]
        if not cfg.resume:  # another run's state would be taken for this one's
            stale += ["last.ckpt", "best.safetensors", "model.safetensors", "wandb_id.txt"]
        for name_of_file in stale:
            (folder / name_of_file).unlink(missing_ok=True)
        files.remove_partial(folder)
    log.info("%s%s", "continuing " if cfg.resume else "", _readable(folder))

    from robustft import experiment  # torch, lightning and open_clip take seconds to import

    with _interruptions(folder, sweep=sweep):
        return experiment.run(cfg)


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
    """SIGTERM counts as Ctrl-C; what is raised says how to go on."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main_thread else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        # Outside of training steps Lightning turns the one into the other.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        what = str(stop) if str(stop).startswith("interrupted") else "interrupted"
        if sweep:
            how = "Go on with the sweep by the same command"
        elif runs.is_interrupted(folder):
            how = f"Resume with: python run.py resume={_readable(folder)}"
        else:
            how = "Nothing was kept yet to resume from"
        raise KeyboardInterrupt(f"{what}. {how}") from None
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _plan(arguments: list[str]) -> Plan:
    """Checks what was typed and adds to it where the run or the sweep goes."""
    args = get_args_parser().parse_intermixed_args(arguments)
    if args.help or args.hydra_help or args.shell_completion or args.info:
        return Plan(arguments, None)
    if args.config_name or args.config_path or args.config_dir or args.experimental_rerun:
        raise UserError("configs come from conf/: put a preset of your own in conf/experiment")
    flags = [argument for argument in arguments if argument not in args.overrides]
    parsed = overrides.parse(args.overrides)
    resume = _value(parsed, "resume")
    if resume not in (None, "null", "auto"):
        folder = Path(resume).expanduser()
        runs.check_resumable(folder)
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
    if given is not None and any(character in given for character in "=,"):
        raise UserError(f"hydra.run.dir={given}: names with '=' or ',' cannot be typed back later")
    launcher = processes.launched_together()
    if launcher and given is None and resume in (None, "null", "auto"):
        raise UserError(f"{launcher} starts every process by itself: give them all one folder with hydra.run.dir=DIR")
    if resume in (None, "null"):
        return [f"hydra.run.dir='{given or runs.new_folder(cfg)}'"]
    if resume == "auto":
        candidates = [Path(given)] if given else list((runs.RUNS / runs.name(cfg)).glob("*"))
        found = runs.newest_interrupted(cfg, [path for path in candidates if path.is_dir()])
        if found is None:
            print("resume=auto: found no interrupted run with this config, starting a new one")
            return ["resume=null", f"hydra.run.dir='{given or runs.new_folder(cfg)}'"]
        return [f"resume='{found}'", f"hydra.run.dir='{found}'"]
    folder = Path(str(resume)).expanduser()
    if given is not None and Path(given).resolve() != folder.resolve():
        raise UserError(f"resume={resume} goes on in that folder: leave out hydra.run.dir")
    advice = "Go on with its own settings (resume=FOLDER alone takes them), or start a new run"
    runs.refuse_other_config(cfg, folder, f"the run in {folder}", advice)
    return [f"hydra.run.dir='{folder}'"]


def _plan_sweep(cfg: DictConfig, hydra_config: DictConfig, parsed: list[Override]) -> tuple[list[str], Path]:
    if _value(parsed, "resume") not in (None, "null", "auto"):
        raise UserError("resume=FOLDER is for single runs: a sweep goes on by the same command")
    if launcher := processes.launched_together():
        raise UserError(f"{launcher} would start the whole sweep in each of its processes: start it once, without")
    slurm = hydra_config.launcher._target_.endswith("SlurmLauncher")
    if slurm and shutil.which("srun") is None:
        raise UserError("hydra/launcher=slurm: found no srun here. Start it on a login node of the cluster")
    _check_devices(cfg, own_process=slurm)
    typed = {override.key_or_group: override for override in parsed}
    preset = hydra_config.sweeper.get("params") or {}
    swept = [key for key in preset if key not in typed]
    swept += [key for key, override in typed.items() if override.is_sweep_override()]
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
    folder = Path(_value(parsed, "hydra.sweep.dir") or runs.SWEEPS / name)
    added = [f"sweep='{name}'", f"hydra.sweep.dir='{folder}'"]
    if "hydra.sweep.subdir" not in typed:
        added.append(f"hydra.sweep.subdir='{runs.job_name(swept, list(overrides.groups()))}'")
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


def _check_devices(cfg: DictConfig, *, own_process: bool) -> None:
    """Refuses several devices where the other processes of a run would start the whole sweep again."""
    devices = cfg.trainer.devices
    several = devices not in ("auto", 1, "1") and not (OmegaConf.is_list(devices) and len(devices) == 1)
    if (several or cfg.trainer.num_nodes > 1) and not own_process:
        raise UserError(
            f"trainer.devices={devices}: a run of a sweep takes one device here."
            " Use hydra/launcher=slurm, or start the runs one by one"
        )


def _report_failed(folder: Path, started: float) -> int:
    """Lists the runs of a sweep that failed just now; the exit status."""
    errors = [path for path in sorted(folder.glob("**/error.txt")) if path.stat().st_mtime >= started - 1]
    if errors:
        print(f"{len(errors)} of the runs in {folder} failed:", file=sys.stderr)
    for path in errors:
        reason = path.read_text().strip().splitlines()[-1]
        print(f"  {path.parent.relative_to(folder)}: {reason}", file=sys.stderr)
    return 1 if errors else 0


def _value(parsed: list[Override], key: str) -> str | None:
    """The last value typed for a setting, as text."""
    single = [override for override in parsed if not override.is_sweep_override()]
    found = [override.value() for override in single if override.key_or_group == key]
    return str(found[-1]) if found and found[-1] is not None else None


def _in_task(error: BaseException) -> bool:
    """Whether an error comes out of a run: Hydra's errors there are faults of the program."""
    return any(frame.f_code is task.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _readable(folder: Path) -> str:
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
