"""What a composed config must satisfy, checked before anything heavy is imported or any time is spent.

`resolve` fills in what follows from other settings, `check` refuses what cannot work, `plain` and
`differences` compare runs. The settings themselves, with comments, are in conf/.
"""

import glob
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from robustft.errors import UserError

MODEL = "model.safetensors"  # what a run leaves of its model
BEST = "best.safetensors"  # the best one so far, while it trains

# Set by the command line interface for each run, see robustft/cli.py.
RUN_KEYS = ("run_dir", "run_name")

# A run stays the same run when these change: they say where and how fast, not what.
INCIDENTAL = re.compile(
    r"(run_dir|run_name|resume|overwrite|disagreement|save_minutes|sweep|check|prepare|logger(\..*)?"
    r"|data\.(num_workers|eval_batch_size|validate|prepared)"
    r"|model\.recipe\..*"  # where other settings get their defaults
    r"|trainer\.(accelerator|strategy|devices|num_nodes|max_time|log_every_n_steps|profiler|detect_anomaly"
    r"|enable_.*|num_sanity_val_steps|plugins|model_registry))"
)

Rule = tuple[Callable[[Any], bool], str]  # what is accepted, in code and in words


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _fraction(value: Any) -> bool:
    return _number(value) and 0 < value < 1


def _one_of(*names: Any) -> Rule:
    return (lambda value: value in names), "one of " + ", ".join(map(_shown, names))


def _or_null(rule: Rule) -> Rule:
    accepts, expected = rule
    return (lambda value: value is None or accepts(value)), f"{expected}, or null"


def _where_it_applies(rule: Rule) -> Rule:
    """Null stands for "does not apply", which is nothing to recommend."""
    accepts, expected = rule
    return (lambda value: value is None or accepts(value)), expected


FRACTION = (_fraction, "a number between 0 and 1, both excluded")
COUNT = ((lambda value: _whole(value, 1)), "a whole number, 1 or more")
UNIT = ((lambda value: _number(value) and 0 <= value <= 1), "a number from 0 to 1")
NOT_NEGATIVE = ((lambda value: _number(value) and value >= 0), "a number, 0 or more")
POSITIVE = ((lambda value: _number(value) and value > 0), "a number above 0")
FLAG = ((lambda value: isinstance(value, bool)), "true or false")
TEXT = ((lambda value: isinstance(value, str) and value != ""), "text")

# What each setting accepts. Settings that this config lacks are passed over.
RULES: dict[str, Rule] = {
    "mask.kind": _one_of("none", "random", "context", "object"),
    "mask.threshold": _where_it_applies(FRACTION),
    "mask.rate": _where_it_applies(FRACTION),
    "mask.cam": _where_it_applies(_one_of("relevance", "gradcam")),
    "mask.source": _where_it_applies(_one_of("student", "teacher")),
    "mask.layers": _or_null(COUNT),
    "fill.kind": _one_of("none", "single", "multi"),
    "beta": _where_it_applies(NOT_NEGATIVE),
    "temperature": _where_it_applies(POSITIVE),
    "alpha": _where_it_applies(UNIT),
    "seed": ((lambda value: _whole(value, 0) and value < 2**32), "a whole number from 0 to 4294967295"),
    "sweep": _or_null(TEXT),
    "check": _or_null(_one_of("data")),
    "prepare": FLAG,
    "init": _or_null(TEXT),
    "teacher": _or_null(TEXT),
    "checkpoint": _or_null(TEXT),
    "resume": _or_null(TEXT),
    "overwrite": FLAG,
    "save_minutes": NOT_NEGATIVE,
    "disagreement": ((lambda value: _whole(value, 0)), "a whole number, 0 or more"),
    "model.pretrained": _or_null(TEXT),
    "model.grad_checkpointing": FLAG,
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.warmup": FRACTION,
    "method.name": _one_of(
        "zeroshot", "evaluate", "finetune", "counterfactual", "linear_probe", "lpft", "wiseft", "soup", "kd"
    ),
    "method.greedy": FLAG,
    "method.probe.lr": POSITIVE,
    "method.probe.epochs": COUNT,
    "data.root": _or_null(TEXT),
    "data.prepared": (
        (lambda value: value is None or value is False or TEXT[0](value)),
        "a folder, null (prepared/ under data.root), or false",
    ),
    "data.lossy": FLAG,
    "data.batch_size": COUNT,
    "data.eval_batch_size": COUNT,
    "data.holdout": _or_null(((lambda value: _whole(value, 0)), "a whole number, 0 or more")),
    "data.holdout_seed": _or_null(((lambda value: _whole(value, 0)), "a whole number, 0 or more")),
    "data.eval_images": _or_null(COUNT),
    "data.num_workers": _or_null(((lambda value: _whole(value, 0)), "a whole number, 0 or more")),
    "data.validate": _one_of("holdout", "all"),
    "data.correlation": UNIT,
    "data.train_images": COUNT,
    "data.test_images": COUNT,
    "data.image_size": COUNT,
    "data.data_seed": ((lambda value: _whole(value, 0)), "a whole number, 0 or more"),
    "trainer.max_epochs": _or_null(COUNT),
    "trainer.max_steps": (
        (lambda value: value == -1 or _whole(value, 1)),
        "a whole number, 1 or more, or -1 for no limit",
    ),
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.num_nodes": COUNT,
    "trainer.limit_val_batches": _or_null(POSITIVE),
    "trainer.overfit_batches": ((lambda value: value == 0), "0: it would train on the hold-out"),
    "trainer.precision": _one_of("auto", "32-true", "64-true", "bf16-mixed", "16-mixed", 32, "32", "bf16", 16, "16"),
    "trainer.log_every_n_steps": COUNT,
    "trainer.gradient_clip_val": _or_null(POSITIVE),
    "trainer.use_distributed_sampler": _one_of(False),
    "trainer.enable_checkpointing": _or_null(FLAG),
}


def resolve(cfg: DictConfig, *, sweep: bool = False) -> None:
    """Fills in what follows from the rest, in place: what does not apply becomes null.

    Args:
        cfg: a composed config that `check` has accepted.
        sweep: the run is one of a sweep: it keeps no weights unless told to, and takes one device.
    """
    with open_dict(cfg):
        for name in ("beta", "temperature", "alpha"):  # 1 and 1.0 are one setting
            cfg[name] = None if cfg[name] is None else float(cfg[name])
        for name in {"beta", "temperature", "alpha"} - set(cfg.method.uses):
            cfg[name] = None
        mapped = cfg.mask.kind in ("object", "context")
        for name in ("threshold", "cam", "source", "layers"):
            cfg.mask[name] = cfg.mask[name] if mapped else None
        if cfg.mask.kind != "random":
            cfg.mask.rate = None
        if cfg.trainer.enable_checkpointing is None:
            wanted = OmegaConf.select(cfg, "logger.wandb.log_model")  # an artifact of the run's model
            cfg.trainer.enable_checkpointing = bool(wanted) or not sweep
        if sweep and cfg.trainer.devices == "auto":
            cfg.trainer.devices = 1


def check_applies(cfg: DictConfig, typed: Iterable[str]) -> None:
    """Refuses settings that were typed and mean nothing here; left alone, they would be lost without a word.

    Raises:
        UserError: names the first of them.
    """
    of_map = ("threshold", "cam", "source", "layers")
    masks = {"none": (), "random": ("rate",), "object": of_map, "context": of_map}
    for key in typed:
        group, _, name = key.rpartition(".")
        if group == "mask" and name != "kind" and name not in masks[cfg.mask.kind]:
            raise UserError(f"{key} does nothing with mask={cfg.mask.kind}: leave it out, or choose another mask")
        if key in ("beta", "temperature", "alpha") and key not in cfg.method.uses:
            raise UserError(f"{key} does nothing with method={cfg.method.name}: leave it out")


def check(cfg: DictConfig) -> None:
    """Refuses what cannot work.

    Raises:
        UserError: the first setting that is missing, out of range, or at odds with another.
    """
    for name, value in flatten(container(cfg, resolve=False)):
        if value == "???":
            raise UserError(f"{name} has no value: pass {name}=...")
    for name, (accepts, expected) in RULES.items():
        value = OmegaConf.select(cfg, name, default=accepts)
        if value is accepts:
            continue
        value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
        if not accepts(value):
            raise UserError(f"{name}={_shown(value)}: expected {expected}")
    _check_masks(cfg)
    _check_batch(cfg)
    if cfg.disagreement and cfg.method.name not in ("counterfactual", "finetune", "kd", "lpft"):
        raise UserError(f"disagreement is not measured with method={cfg.method.name}: leave it out")
    _check_inputs(cfg)


def _check_masks(cfg: DictConfig) -> None:
    method, mask, fill = cfg.method, cfg.mask, cfg.fill.kind
    if not method.masks:
        given = [f"mask={mask.kind}"] if mask.kind != "none" else []
        given += [f"fill={fill}"] if fill != "none" else []
        given += [f"mask.{key}={mask[key]}" for key in mask if key != "kind" and mask[key] is not None]
        if given:
            raise UserError(f"method={method.name} takes no mask or fill: leave out {given[0]}")
    if mask.kind == "none" and fill != "none":
        raise UserError(f"fill={fill} has nothing to fill with mask=none: leave it out, or choose a mask")
    mapped = ("threshold", "cam", "source")
    for key in {"object": mapped, "context": mapped, "random": ("rate",)}.get(mask.kind, ()):
        if mask[key] is None:
            raise UserError(f"mask.{key} has no value: mask={mask.kind} needs one")


def _check_batch(cfg: DictConfig) -> None:
    devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) else 1
    local = cfg.data.batch_size // max(devices, 1) // cfg.trainer.accumulate_grad_batches
    if local < 1:
        raise UserError(
            f"data.batch_size={cfg.data.batch_size} cannot be split over {devices} device(s) and"
            f" trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches}: raise it"
        )
    if local == 1 and (cfg.fill.kind != "none" or cfg.disagreement):
        what = f"fill={cfg.fill.kind}" if cfg.fill.kind != "none" else f"disagreement={cfg.disagreement}"
        raise UserError(
            f"{what} takes patches from other images, but a device sees one image at a time:"
            f" raise data.batch_size={cfg.data.batch_size}, or accumulate fewer batches"
        )


def _check_inputs(cfg: DictConfig) -> None:
    """Files and folders named in the config are there. What is in them is for their readers to check."""
    for name in cfg.method.needs:
        if cfg[name] is None:
            raise UserError(f"method={cfg.method.name} needs {name}=...: the model.safetensors of a run")
    for name in cfg.method.uses:
        if cfg[name] is None:
            raise UserError(f"{name} has no value: method={cfg.method.name} needs one")
    for name in ("init", "teacher", "checkpoint"):
        if cfg[name] is not None:
            cfg[name] = str(model_file(cfg[name]))
        if cfg[name] is not None and not Path(cfg[name]).expanduser().is_file():
            raise UserError(f"{name}={cfg[name]}: no such file. Expected the model.safetensors of a run")
    if cfg.checkpoints is not None:
        listed = [cfg.checkpoints] if isinstance(cfg.checkpoints, str) else list(cfg.checkpoints)
        for pattern in listed:
            if not isinstance(pattern, str) or not glob.glob(str(Path(pattern).expanduser()), recursive=True):
                raise UserError(f"checkpoints={pattern}: no such file. Expected model.safetensors of runs")
    pretrained = cfg.model.pretrained
    named = pretrained is not None and ("/" in pretrained or Path(pretrained).suffix != "")
    if named and not Path(pretrained).expanduser().is_file():
        raise UserError(f"model.pretrained={pretrained}: no such file. Expected one, or a tag of open_clip")
    root = cfg.data.root  # the scenes' folder is made when it is needed
    on_disk = "imagenet" in cfg.data._target_
    if root is not None and not on_disk and Path(root).expanduser().is_dir():
        inside = [path.name for path in Path(root).expanduser().iterdir()]
        if inside and not any(name.startswith("scenes") for name in inside):
            raise UserError(
                f"data.root={root}: it holds other things than rendered scenes. For ImageNet choose model=vitb32 (or"
                " another CLIP); for the scenes an empty folder, or none"
            )
    if root is None and on_disk and any(place is None for place in cfg.data.sets.values()):
        raise UserError(
            "data.root is not set: give the folder that holds the data sets (data.root=DIR), or a folder for every set"
            " (data.sets.imagenet=DIR ...; false leaves a shift set out)"
        )
    if root is not None and on_disk and not Path(root).expanduser().is_dir():
        raise UserError(
            f"data.root={root}: no such folder. Expected the one that holds ILSVRC2012/{{train,val}} and the shift sets"
            " under their usual names (imagenetv2-matched-frequency-format-val, imagenet-r, imagenet-sketch,"
            " objectnet-1.0, imagenet-a; docs/data.md lists all)"
        )
    prepared = cfg.data.get("prepared")
    if prepared and not cfg.prepare and not Path(prepared).expanduser().is_dir():
        raise UserError(f"data.prepared={prepared}: no such folder. Add prepare=true to make prepared copies there")


def model_file(path: str | Path) -> Path:
    """The file meant by ``path``: of a run's folder its model, of an interrupted run's the best so far."""
    inside = [Path(path) / name for name in (MODEL, BEST)]
    return next((file for file in inside if file.expanduser().is_file()), Path(path))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain, resolved Python values, as results.json and config.yaml keep it."""
    return {key: value for key, value in container(cfg, resolve=True).items() if key not in RUN_KEYS}


def container(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """A config as nested dictionaries; unless resolved, references stay as they are written."""
    values = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Settings in which two plain configs describe different runs, as "name=here (there: value)"."""
    here, there = dict(flatten(ours)), dict(flatten(theirs))
    names = [name for name in {**there, **here} if not INCIDENTAL.fullmatch(name)]
    return [
        f"{name}={_shown(here.get(name))} (there: {_shown(there.get(name))})"
        for name in names
        if here.get(name) != there.get(name)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; lists and empty dictionaries are leaves."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
