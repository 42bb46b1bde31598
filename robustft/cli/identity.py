"""What makes two runs the same: `identity`, and `differing` from a saved one; `resolve` makes configs comparable.

What follows from other settings is filled in, and what means nothing to a run does not count.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from robustft.cli.accepted import shown
from robustft.cli.core_settings import REFUSED
from robustft.cli.settings import Settings
from robustft.common.configs import ACCUMULATE, RUN_KEYS, flatten
from robustft.common.errors import UserError

# A run stays the same run when these change: they say where and how fast, not what.
INCIDENTAL = re.compile(
    r"(run_dir|run_name|resume|overwrite|disagreement|metric(\..*)?|keep_logits|threads|save_minutes|sweep|check|prepare"
    r"|logger(\..*)?"
    r"|retain(\..*)?|data\.(num_workers|eval_batch_size|validate|prepared)"
    r"|model\.recipe\..*"  # where other settings get their defaults
    r"|trainer\.(accelerator|strategy|devices|num_nodes|max_time|min_epochs|min_steps|log_every_n_steps|profiler"
    r"|detect_anomaly|enable_.*))"
)
WHERE = ("resume", "overwrite", "sweep", *RUN_KEYS)  # of these two jobs of a sweep may differ and be one run
# Where earlier versions had what their configs name.
MOVED = {"robustft.clip.tiny.tokenizer": "robustft.models.tiny.tokenizer"}


def resolve(cfg: DictConfig, *, sweep: bool = False) -> None:
    """Fills in what follows from the rest, in place: what does not apply becomes null.

    Args:
        cfg: a composed config that `check` has accepted.
        sweep: the run is one of a sweep: it keeps no weights unless told to, and takes one device.
    """
    with open_dict(cfg):
        for name, value in _follows(Settings(cfg), sweep=sweep):
            OmegaConf.update(cfg, name, value)


def _follows(settings: Settings, *, sweep: bool) -> Iterator[tuple[str, Any]]:
    """(name, value) of what follows from the rest; see `resolve`."""
    values = settings.values
    masked = settings.takes.get("method", {}).get("masks", False) is not False
    filled = masked and settings.takes.get("mask", {}).get("fills", True)
    for name, value in values.items():
        if name.startswith("mask.") and name != "mask.kind" and not (masked and settings.is_taken(name)):
            yield name, None
        elif "." not in name and not isinstance(value, dict) and name not in RUN_KEYS:
            if not settings.is_taken(name):
                yield name, None
            elif _number(value) and any(_is_real(one) for owner, one in settings.descriptions(name) if owner != "core"):
                yield name, float(value)  # 1 and 1.0 are one setting
    if not masked:
        yield "mask.kind", "none"
    if not filled:
        yield "fill.kind", "none"
    if values["trainer.enable_checkpointing"] is None:
        wanted = values.get("logger.wandb.log_model")  # an artifact of the run's model
        yield "trainer.enable_checkpointing", bool(wanted) or not sweep
    if sweep and values["trainer.devices"] == "auto":
        yield "trainer.devices", 1


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_real(described: Mapping[str, Any]) -> bool:
    return described.get("kind", "number") == "number" and "of" not in described and "any" not in described


def seen(cfg: DictConfig, *, sweep: bool) -> Settings:
    """What a run makes of its settings: values as they are resolved, references as they are written."""
    settings = Settings(cfg)
    settings.values |= dict(_follows(settings, sweep=sweep))
    return settings


def identity(cfg: DictConfig, *, sweep: bool = False) -> tuple[tuple[str, str], ...]:
    """What makes a job the run that it is: jobs of which this is the same are one run."""
    settings = seen(cfg, sweep=sweep)
    own = (name for name in sorted(settings.values) if name not in WHERE and settings.matters(name))
    return tuple((name, repr(settings.values[name])) for name in own if not name.startswith("model.recipe."))


def distinct(jobs: Sequence[DictConfig], also: Sequence[Any] | None = None) -> list[int]:
    """For each job of a sweep or study the position of the first one that is the same run (its own, if none is).

    Args:
        also: what else has to be the same, for each of the jobs.

    A config that cannot be read to its end is like no other: it will be refused when it is run.
    """
    first: dict[Any, int] = {}
    found = []
    for number, job in enumerate(jobs):
        try:
            key: Any = (identity(job, sweep=True), also and also[number])
        except (OmegaConfBaseException, ValueError, TypeError):
            key = number
        found.append(first.setdefault(key, number))
    return found


def renewed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config as it was saved, by this or an earlier version, in today's names."""
    config = {**saved}
    if isinstance(config.get("optimizer"), dict) and isinstance(config["optimizer"].get("betas"), list):
        optimizer = dict(config["optimizer"])
        *_, beta2 = optimizer.pop("betas") or [None]  # the first never had an effect
        config["optimizer"] = optimizer | {"beta2": beta2, "max_momentum": 0.95, "base_momentum": 0.85}
    if "schedule" not in config:
        config["schedule"] = {"name": "one_cycle"}
        config["constraint"] = {"anchor": "zeroshot", "head": True}
        config["augment"] = {"kind": None}
        if isinstance(config.get("optimizer"), dict):
            config["optimizer"] = {"beta1": 0.9, **config["optimizer"]}
    if "moving" not in config:
        config |= {"moving": {"name": "none"}, "result": "student", "train": {"name": "all"}}
    config.setdefault("recipe", {"name": "model"})
    if isinstance(config.get("method"), dict):
        traits = ("trains", "masks", "needs", "uses")  # of the code
        config["method"] = {key: value for key, value in config["method"].items() if key not in traits}
    if isinstance(config.get("model"), dict):
        config["model"] = _moved(config["model"])
    if isinstance(config.get("trainer"), dict):
        config["trainer"] = {key: v for key, v in config["trainer"].items() if f"trainer.{key}" not in REFUSED}
    return config


def _moved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that name modules where these are now."""
    return {
        key: _moved(value) if isinstance(value, dict) else MOVED.get(value, value) if key == "_target_" else value
        for key, value in values.items()
    }


def take_recorded(cfg: DictConfig, recorded: dict[str, Any]) -> None:
    """What was found out when a run began holds for those who go on with it.

    Raises:
        UserError: another number of threads is asked for.
    """
    threads = recorded.get("threads")
    if threads is not None and cfg.threads not in (None, threads):
        raise UserError(
            f"threads={cfg.threads}: the run was started with {threads}, and their number changes the last digits of"
            " what is computed. Leave it out"
        )
    cfg.threads = threads
    number = recorded.get("trainer", {}).get("accumulate_grad_batches")
    if cfg.trainer.accumulate_grad_batches == "auto" and number is not None:
        cfg.trainer.accumulate_grad_batches = number


def differing(ours: DictConfig | dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings in which a run is another one than that of a saved config: their values here and there.

    Args:
        ours: a resolved config; of a plain one everything counts, also what means nothing to it.
    """
    settings = Settings(ours) if isinstance(ours, DictConfig) else None
    here = settings.values if settings else dict(flatten(renewed(ours)))
    there = dict(flatten(renewed(theirs)))
    names = [name for name in {**there, **here} if not INCIDENTAL.fullmatch(name)]
    if settings:  # where these are the same, what means nothing here means nothing there
        names = [name for name in names if name not in here or settings.matters(name)]
    if here.get(ACCUMULATE) == "auto":  # it stands for whatever was found then
        names = [name for name in names if name != ACCUMULATE]
    # What is off here, an earlier version may not have had.
    names = [name for name in names if name in there or not (here[name] in (None, False) or "_target_" in name)]
    return {name: (here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)}


def differences(ours: DictConfig | dict[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What is `differing`, each as "name=here (there: value)"."""
    return [f"{name}={shown(here)} (there: {shown(there)})" for name, (here, there) in differing(ours, theirs).items()]
