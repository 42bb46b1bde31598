"""From what was typed to what Hydra is given: a run or a sweep, checked, and the folder that it goes to."""

import os
import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from robustft.cli import checks, compose, hydra_private, identity, naming, resuming, run_folder, sources
from robustft.cli.hydra_private import Override
from robustft.cli.sources import groups
from robustft.common import configs, machine, paths, processes, threads
from robustft.common.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What is handed to Hydra."""

    arguments: list[str]
    sweep: Path | None  # folder of the sweep


def make_plan(arguments: list[str]) -> Plan:
    """Checks what was typed and adds to it where the run or the sweep goes."""
    args = hydra_private.command_line().parse_intermixed_args(arguments)
    if args.config_name or args.config_path or args.experimental_rerun:
        raise UserError("configs come from conf/: for configs of your own, give their folder: --config-dir DIR")
    if args.config_dir:
        arguments = _with_configs(arguments, args.config_dir)
    if args.help or args.hydra_help or args.shell_completion or args.info:
        return Plan(arguments, None)
    flags = [argument for argument in arguments if argument not in args.overrides]
    parsed = compose.parse(args.overrides)
    resume = _value(parsed, "resume")
    if resume not in (None, "null", "auto"):
        folder = paths.expand(resume)
        if folder.name == "last.ckpt" and folder.is_file():
            folder = folder.parent
        resume = str(folder)
        resuming.check_resumable(folder)
        own_configs = sources.recorded(folder) if not args.config_dir else None
        if own_configs:
            flags = [*_with_configs([], str(own_configs)), *flags]
            parsed = compose.parse(args.overrides)
        keys = {override.key_or_group for override in parsed}
        before = compose.parse(resuming.saved_overrides(folder))
        before = [override for override in before if override.key_or_group not in keys]
        resuming.refuse_code(folder, before)
        parsed = before + parsed
    parsed = compose.complete(parsed)
    cfg = compose.compose_first(parsed)
    lines = [str(override.input_line) for override in parsed]
    if args.cfg and args.multirun:
        raise UserError("--cfg shows the config of one run: leave out -m, and give every setting one value")
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
    checks.check(cfg, compose.texts(parsed))
    checks.check_started(cfg)
    identity.resolve(cfg)
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
    if (name := _value(parsed, "sweep")) is not None:
        raise UserError(f"sweep={name} names a sweep, and this is a single run: add -m, or leave it out")
    if cfg.overwrite and given is None:
        raise UserError("overwrite=true replaces the run in a folder: say in which one, hydra.run.dir=DIR")
    if cfg.overwrite and (cfg.check is not None or cfg.prepare):
        raise UserError("overwrite=true replaces a run: leave it out where nothing is run (check=, prepare=)")
    found = None  # the run that goes on
    if resume == "auto":
        candidates = [Path(given)] if given else list((naming.RUNS / naming.name(cfg)).glob("*"))
        # Where processes are started together, the first one may be at work in the folder already.
        find = run_folder.newest_resumable if processes.is_first_process() else resuming.newest_interrupted
        found = find(cfg, [path for path in candidates if path.is_dir()])
        if found is not None:
            resuming.refuse_damaged(found)
    elif resume not in (None, "null"):
        found = paths.expand(str(resume))
        if given is not None and Path(given).resolve() != found.resolve():
            raise UserError(f"resume={resume} goes on in that folder: leave out hydra.run.dir")
        advice = "Go on with its own settings (resume=FOLDER alone takes them), or start a new run"
        resuming.refuse_other_config(cfg, found, f"the run in {found}", advice)
        if processes.is_first_process():
            run_folder.refuse_in_use(found)
    if found is None:
        _check_folder(cfg, given)
    _check_accelerator(cfg)
    if found is not None:
        return [f"resume={paths.quote(found)}", _placed("hydra.run.dir", found)]
    if resume == "auto" and processes.is_first_process():
        print("resume=auto: found no interrupted run with this config, starting a new one")
    place = (naming.RUNS / naming.name(cfg) if given is None else Path(given)).absolute()
    run_folder.MADE.update(path for path in (place, *place.parents) if not path.exists())
    folder = naming.new_folder(cfg) if given is None else Path(given)
    if given is None:
        run_folder.MADE.add(folder.absolute())
    placed = _placed("hydra.run.dir", folder)
    return ["resume=null", placed] if resume == "auto" else [placed]


def _check_accelerator(cfg: DictConfig) -> None:
    """Refuses devices that this machine has not, before it takes seconds to import all that would use them."""
    if cfg.check is not None or cfg.prepare:
        return
    accelerator, devices = cfg.trainer.accelerator, cfg.trainer.devices
    if lacks := machine.missing_devices(accelerator, configs.device_count(devices)):
        raise UserError(
            f"trainer.accelerator={accelerator} trainer.devices={devices}: {lacks}. Use what there is with"
            " trainer.accelerator=auto trainer.devices=auto, or trainer.accelerator=cpu"
        )


def _placed(key: str, folder: Path | str) -> str:
    """The setting that puts a run or a sweep into a folder, which is made if it can be."""
    if "${" not in str(folder):  # else Hydra puts the rest of the name in
        paths.make_folder(Path(folder), key)
    return f"{key}={paths.quote(folder)}"


def _with_configs(arguments: list[str], typed: str) -> list[str]:
    """The arguments with the user's folder of configs in one form: absolute, for all processes of a run."""
    sources.add(typed)
    left = iter(arguments)
    kept = []
    for argument in left:
        name = argument.partition("=")[0]
        if name == "-cd" or name.startswith("--config-d"):
            if "=" not in argument:
                next(left)
        else:
            kept.append(argument)
    return [f"--config-dir={sources.added()}", *kept]


def _check_folder(cfg: DictConfig, given: str | None) -> None:
    """Refuses a typed folder that is another run's, before Hydra opens a log there."""
    if given is None or not processes.is_first_process():  # the first process has made it its own already
        return
    run_folder.refuse_in_use(Path(given))
    run_folder.refuse_taken(cfg, Path(given))
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
    if hydra_config.runtime.choices.get("hydra/launcher") == "basic":  # others may run elsewhere
        _check_accelerator(cfg)
    if cfg.overwrite:
        raise UserError("overwrite=true is for single runs: name another sweep with sweep=..., or delete its folder")
    _check_jobs(hydra_config)
    typed = {override.key_or_group: override for override in parsed}
    preset = hydra_config.sweeper.get("params") or {}
    swept = [key for key in preset if key not in typed]
    swept += [key for key, override in typed.items() if override.is_sweep_override()]
    choices = hydra_config.runtime.choices
    named = _value(parsed, "sweep") not in (None, "null") or "hydra.sweep.dir" in typed
    plain = choices.get("hydra/launcher") == "basic" and choices.get("hydra/sweeper") == "basic"
    if plain and not swept and not named:
        raise UserError("-m: nothing is swept. Give a setting several values, as in seed=1,2, or leave out -m")
    own = [key for key in typed if key not in swept and not key.startswith("hydra")]
    constants = [
        str(typed[key].input_line)
        for key in own
        if key not in ("experiment", "logger") and not identity.INCIDENTAL.fullmatch(key)
    ]
    name = _value(parsed, "sweep")
    if name in (None, "null"):
        choice = choices.get("experiment")
        name = naming.sweep_name(choice if preset else None, swept, constants)
    elif naming.slug(name) != name:
        raise UserError(f"sweep={name}: a name is made of letters, digits, dots, dashes and underscores")
    folder = paths.expand(_value(parsed, "hydra.sweep.dir") or naming.SWEEPS / name)
    own_names = "hydra.sweep.subdir" not in typed
    if own_names:
        _refuse_other_sweep(cfg, folder / naming.readable_name(_first_values(swept, cfg, choices), swept))
    # Hydra's own sweeper leaves nothing out; one of another kind (a preset's, a typed one) chooses its runs itself.
    may_skip = choices.get("hydra/sweeper") == "basic" and "hydra/sweeper" not in typed
    skip = _check_all(parsed, preset, swept, may_skip=may_skip)
    added = [f"sweep={paths.quote(name)}", _placed("hydra.sweep.dir", folder)]
    os.environ[run_folder.NOTES] = notes = str(run_folder.notes_folder(folder.absolute()))
    added.append(f"+hydra.job.env_set.{run_folder.NOTES}={paths.quote(notes)}")  # reaches runs in other processes
    if not slurm:  # whose own script may say how many threads a node takes
        added.append(f"+hydra.job.env_set.{threads.CARRIED}={paths.quote(threads.ASKED or 'none')}")
    if own_names:
        added.append(f"hydra.sweep.subdir={paths.quote(naming.job_name(swept, list(groups()), sources.several()))}")
    if skip:
        added += ["hydra/sweeper=combinations", f"hydra.sweeper.skip={skip}"]
    if not swept:
        print(f"nothing is swept: one run, in {paths.readable(folder)}")
    return added, folder


def _first_values(swept: list[str], cfg: DictConfig, choices: DictConfig) -> dict[str, Any]:
    """What the first run of a sweep has of what is swept."""
    several = sources.several()
    return {
        key: naming.members(cfg[key])
        if key in several
        else choices[key]
        if key in choices
        else OmegaConf.select(cfg, key)
        for key in swept
    }


def _check_all(
    parsed: list[Override], preset: DictConfig | dict[str, Any], swept: list[str], *, may_skip: bool
) -> list[int]:
    """Checks all jobs of a sweep before the first is started; the positions of those to skip: they repeat another.

    Raises:
        UserError: a setting means nothing in any of them, or one of them cannot work.
    """
    of_preset = compose.parse([f"{key}={value}" for key, value in preset.items() if key in swept])
    asked = [override for override in (*of_preset, *parsed) if not override.key_or_group.startswith("hydra")]
    jobs = compose.jobs(asked)
    cfgs = [job.cfg for job in jobs]
    checks.refuse_idle(cfgs, compose.texts(asked), sweep=True)
    if any(not compose.values(override) or override.is_interval_sweep() for override in asked):
        return []  # values are drawn as the sweep goes on
    names = [naming.readable_name(job.choices, swept) for job in jobs]
    for name, job in zip(names, jobs, strict=True):
        try:
            checks.check(deepcopy(job.cfg))
        except OmegaConfBaseException:  # refers to what is known in the run alone
            continue
        except UserError as error:
            one = f" (of the run {name}; none was started)" if len(jobs) > 1 else ""
            raise UserError(f"{error}{one}") from error
    if not may_skip:
        return []
    first = identity.distinct(cfgs)
    folders: dict[str, int] = {}
    for name, same in zip(names, first, strict=True):
        if folders.setdefault(name, same) != same:
            raise UserError(
                f"two different runs would have the folder {name}: names of folders keep letters, digits, dots and"
                " dashes alone. Sweep over values that differ in these"
            )
    skip = [number for number, same in enumerate(first) if same != number]
    for number in skip:
        print(f"{names[number]}: the same run as {names[first[number]]}, which is made once")
    return skip


def _refuse_other_sweep(cfg: DictConfig, first: Path) -> None:
    """Refuses a sweep whose first run has been made with other settings, before anything in its folder changes."""
    cfg = deepcopy(cfg)
    try:
        checks.check(cfg)
        identity.resolve(cfg, sweep=True)
    except UserError:  # what cannot work is said below, with the run's name
        return
    run_folder.refuse_other_run(cfg, first)


def _check_devices(cfg: DictConfig, *, own_process: bool) -> None:
    """Refuses several devices where the other processes of a run would start the whole sweep again."""
    devices = cfg.trainer.devices
    several = devices != "auto" and configs.device_count(devices) != 1
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


def _value(parsed: list[Override], key: str) -> str | None:
    """The last value typed for a setting, as text."""
    single = [override for override in parsed if not override.is_sweep_override()]
    found = [override.value() for override in single if override.key_or_group == key]
    return str(found[-1]) if found and found[-1] is not None else None
