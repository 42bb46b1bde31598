"""What a composed config must satisfy, checked before anything heavy is imported or any time is spent.

`check` refuses what cannot work, `refuse_idle` what was typed and means nothing. The settings themselves, with
comments, are in conf/; what they accept and where they matter is in robustft/cli/settings.py and in the `takes` of
components.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustft.cli import places, recipes
from robustft.cli.accepted import accepts, expected, shown
from robustft.cli.core_settings import CHOSEN, REFUSED
from robustft.cli.identity import WHERE, seen
from robustft.cli.settings import Settings
from robustft.common import processes
from robustft.common.configs import ACCUMULATE, container, device_count, flatten
from robustft.common.errors import UserError
from robustft.common.files import refuse_damaged
from robustft.common.paths import expand
from robustft.common.wording import counted
from robustft.models.files import model_file, model_files, weights_file


def check(cfg: DictConfig, typed: Mapping[str, str] | None = None) -> None:
    """Refuses what cannot work.

    Args:
        typed: what was typed for this one run, by name; see `refuse_idle`.

    Raises:
        UserError: the first setting that is missing, means nothing, is out of range, or at odds with another.
    """
    missing(cfg)
    for name, _ in flatten(container(cfg, resolve=False)):
        if name in REFUSED:
            raise UserError(f"{name}: {REFUSED[name]}")
    if "takes" not in cfg.method or OmegaConf.select(cfg, "method._target_") is None:
        lacks = "`takes`" if "takes" not in cfg.method else "`_target_`"
        name = cfg.method.get("name")
        raise UserError(f"method={name} has no {lacks}: conf/method/counterfactual.yaml shows what a method says")
    if typed is not None:
        refuse_idle([cfg], typed)
    settings = Settings(cfg)
    for name in settings.takes["method"].get("needs") or ():
        if settings.values.get(name) is None:
            raise UserError(f"method={cfg.method.name} needs {name}=...: the model.safetensors of a run")
    needs_text = settings.takes["method"].get("text")
    if needs_text and not settings.takes.get("model", {}).get("text", True):
        needs = "trains a text tower too" if needs_text == "trained" else "needs a zero-shot model"
        why = "none" if needs_text == "trained" else "no text tower to make it"
        raise UserError(
            f"method={cfg.method.name} {needs}, and model={cfg.model.name} has {why}. Choose a CLIP, such as"
            " model=vitb32"
        )
    for name, value in settings.values.items():
        for owner, described in settings.descriptions(name):
            if value is None and owner in ("method", "mask") and not accepts(described, None):
                if owner == "method" or settings.masks() is None:
                    raise UserError(f"{name} has no value: {settings.chosen(owner)} needs one")
            elif not accepts(described, value):
                raise UserError(f"{name}={shown(value)}: expected {expected(described)}")
            elif settings.matters(name) and (other := settings.forbidden(described, value)) is not None:
                raise UserError(f"{name}={shown(value)} does not go with {other}")
    trains = bool(settings.takes["method"]["trains"])
    if trains:
        _check_length(cfg)
        _check_batch(cfg, least_images(settings))
    _check_inputs(cfg)


def refuse_idle(jobs: Sequence[DictConfig], typed: Mapping[str, str], *, sweep: bool = False) -> None:
    """Refuses a setting that was typed and matters in none of ``jobs``: it would be lost without a word.

    Args:
        jobs: composed configs, not resolved: of one run, or of all runs of a sweep or a study.
        typed: what was typed, by name.

    Raises:
        UserError: names the first of them.
    """
    names = [name for name in typed if not name.startswith(("hydra.", "hydra/"))]
    for name in names:
        if "takes" in name.split("."):
            raise UserError(f"{name}: what a component takes is described in its file, and no setting")
        if reason := REFUSED.get(name) or CHOSEN.get(name):
            raise UserError(f"{name}: {reason}")
        if typed[name].startswith("{") and not name.startswith("logger."):
            raise UserError(f"{name}={typed[name]}: settings are given one by one, as {name}.NAME=VALUE")
    left = [name for name in names if name not in ("experiment", *WHERE)]
    first: Settings | None = None
    unread: list[DictConfig] = []
    for job in jobs:
        if not left:
            return
        if job.check is not None or job.prepare:  # looks at the data of the run that is described, whatever it is
            return
        try:
            settings = seen(job, sweep=sweep)
        except OmegaConfBaseException:  # it will say what it lacks when it is run
            unread.append(job)
            continue
        first = first or settings
        # What a recipe brings may mean nothing beside what is typed.
        left = [name for name in left if not recipes.is_brought(settings, name, typed[name])]
        left = [name for name in left if not _means_something(settings, name, typed[name])]
    if left and first is not None and not unread:
        name = left[0]
        reason = first.why_idle(name) or first.chosen("method")
        group = name.partition(".")[0]
        everywhere = " in any of the runs" if len(jobs) > 1 else ""
        what = f"{name}={typed[name]}"
        if group in ("mask", "fill") and first.takes["method"].get("masks", False) is False:
            raise UserError(f"{reason} takes no mask or fill: leave out {what}")
        if group == "fill" and reason.startswith("mask="):
            raise UserError(f"{what} has nothing to fill with {reason}: leave it out, or choose a mask")
        raise UserError(f"{what} does nothing with {reason}{everywhere}: leave it out, or change {_part(reason)}")


def _part(reason: str) -> str:
    return reason.partition("=")[0]


def _means_something(settings: Settings, name: str, value: str) -> bool:
    """Whether a typed setting matters, or says no more than what is so."""
    node = settings.values.get(name) == {} or any(leaf.startswith(f"{name}.") for leaf in settings.values)
    is_none = node and "." not in name and value in ("none", "[]")
    if is_none or (value == "null" and not settings.is_taken(name)):
        return True
    if node and "." not in name and name not in ("mask", "fill"):
        if settings.closed(name) is not None:
            return False
        if name == "method" or not settings.takes.get(name, {}).get("settings"):
            return True  # a whole component is chosen: others ask what it means
    return settings.matters(name)


def missing(cfg: DictConfig) -> None:
    """Refuses a config in which something has no value.

    Raises:
        UserError: names it.
    """
    for name, value in flatten(container(cfg, resolve=False)):
        if value == "???":
            raise UserError(f"{name} has no value: pass {name}=...")


def check_started(cfg: DictConfig) -> None:
    """Refuses a run on several machines that was started on one: it would wait for the others for ever.

    Raises:
        UserError: says how to start it.
    """
    nodes = cfg.trainer.num_nodes
    by_hand = {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys()
    if nodes > 1 and not by_hand and processes.launched_together() is None:
        devices = device_count(cfg.trainer.devices) or "DEVICES"
        raise UserError(
            f"trainer.num_nodes={nodes}: nobody has started this run on {nodes} machines. Start it by SLURM (srun"
            f" --nodes={nodes} --ntasks-per-node={devices} python run.py ...), or on each machine by torchrun"
            f" --nnodes={nodes} --nproc-per-node={devices} --node-rank=0..{nodes - 1} --master-addr=FIRST run.py ..."
        )


def _check_length(cfg: DictConfig) -> None:
    trainer, optimizer = cfg.trainer, cfg.optimizer
    if trainer.max_epochs is None and trainer.max_steps == -1 and not trainer.fast_dev_run:
        raise UserError("give trainer.max_epochs or trainer.max_steps: the learning-rate schedule needs an end")
    if optimizer.base_momentum > optimizer.max_momentum:
        raise UserError(
            f"optimizer.base_momentum={optimizer.base_momentum}: expected at most"
            f" optimizer.max_momentum={optimizer.max_momentum}"
        )


def least_images(settings: Settings) -> int:
    """How many images a micro-batch must have for all components: a fill takes patches from others."""
    needed = [int(takes.get("images", 1)) for name, takes in settings.takes.items() if not settings.closed(name)]
    return max([1, *needed, *([2] if settings.values.get("disagreement") else [])])


def _check_batch(cfg: DictConfig, least: int) -> None:
    setting = OmegaConf.select(cfg, "data.takes.training_images")
    if setting is not None and cfg.data.holdout is not None:
        images = OmegaConf.select(cfg, setting) - cfg.data.holdout
        if images < 1:
            raise UserError(
                f"data.holdout={cfg.data.holdout} leaves nothing to train on of {setting}={images + cfg.data.holdout}"
            )
        if cfg.data.batch_size > images:
            raise UserError(
                f"data.batch_size={cfg.data.batch_size} is more than the {counted(images, 'training image')}: there"
                " would be no step. Give a smaller data.batch_size"
            )
    devices = device_count(cfg.trainer.devices) or 1
    accumulate = cfg.trainer.accumulate_grad_batches
    if accumulate == "auto" and devices > 1:
        raise UserError(f"{ACCUMULATE}=auto tries one device, not {devices}: give a number, or trainer.devices=1")
    local = cfg.data.batch_size // devices // (1 if accumulate == "auto" else accumulate)
    if local < 1:
        raise UserError(
            f"data.batch_size={cfg.data.batch_size} cannot be split over {counted(devices, 'device')} and"
            f" trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches}: raise it"
        )
    if local < least:
        fills = OmegaConf.select(cfg, "fill.takes.images") or cfg.disagreement
        who = f"fill={cfg.fill.kind}" if cfg.fill.kind != "none" else f"disagreement={cfg.disagreement}"
        what = (
            f"{who} takes patches from other images"
            if fills
            else f"method={cfg.method.name} compares {counted(least, 'image')}"
        )
        raise UserError(
            f"{what}, but a device sees {'one image' if local == 1 else counted(local, 'image')} at a time: raise"
            f" data.batch_size={cfg.data.batch_size}, or accumulate fewer batches"
        )


def _check_inputs(cfg: DictConfig) -> None:
    """Files and folders named in the config are there. What is in them is for their readers to check."""
    for name in ("init", "teacher", "checkpoint"):
        if cfg[name] is not None:
            cfg[name] = str(model_file(cfg[name]))  # the run's folder will do
            if not Path(cfg[name]).is_file():
                kept = Path(cfg[name]).is_dir() and "that folder holds no model (runs of sweeps keep theirs only with"
                what = f"{kept} trainer.enable_checkpointing=true)" if kept else "no such file"
                raise UserError(f"{name}={cfg[name]}: {what}. Expected the model.safetensors of a run")
            refuse_damaged(Path(cfg[name]), name)
    if cfg.checkpoints is not None:
        listed = [cfg.checkpoints] if isinstance(cfg.checkpoints, str) else list(cfg.checkpoints)
        if not listed or not all(isinstance(item, str) for item in listed):
            raise UserError(f"checkpoints={listed}: expected model.safetensors of runs, or their folders")
        found, least = model_files(listed), cfg.method.takes.get("checkpoints", 1)
        if len(found) < least:
            names = ",".join(listed)
            raise UserError(
                f"checkpoints={names}: {counted(len(found), 'model')}. method={cfg.method.name} needs {least} or more"
            )
        for path in found:
            refuse_damaged(path, "checkpoints")
    pretrained = cfg.model.pretrained
    named = pretrained is not None and ("/" in pretrained or Path(pretrained).suffix != "")
    if named and not weights_file(pretrained).is_file():
        raise UserError(f"model.pretrained={pretrained}: no such file. Expected one, or a tag of open_clip")
    if named:
        refuse_damaged(weights_file(pretrained), "model.pretrained")
    places.check(cfg)
    _check_retained(cfg)


def _check_retained(cfg: DictConfig) -> None:
    """Tasks on which a run is asked what it still knows are there."""
    if "delta" in cfg.retain:
        raise UserError("retain.delta: loggers have the mean change under that name. Choose another one")
    for name, task in cfg.retain.items():
        path, kind = task.get("path"), task.get("kind") or "folders"
        if path is None:
            raise UserError(f"retain.{name}.path has no value: retain.{name}=DIR names the folder of that task")
        if path is False and (idle := [key for key, value in task.items() if key != "path" and value is not None]):
            raise UserError(
                f"retain.{name}.{idle[0]}={task[idle[0]]} does nothing with retain.{name}=false: leave one of them out"
            )
        if isinstance(path, str) and not (expand(path).is_file() if kind == "table" else expand(path).is_dir()):
            what = (
                "file. Expected a table (CSV, TSV, Parquet)" if kind == "table" else "folder. Expected one with class"
            )
            what += "" if kind == "table" else " folders" if kind == "folders" else " folders or torchvision's data"
            table = expand(path).is_file() and kind == "folders"
            raise UserError(
                f"retain.{name}={path}: no such {what}" + (f"; retain.{name}.kind=table reads a table" * table)
            )
