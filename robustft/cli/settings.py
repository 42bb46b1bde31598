"""What settings accept, and where they matter: the question that a run, a sweep or a study is checked by.

Settings of the core are described here (`CORE`). Components describe theirs in their own YAML, under `takes`, so that
a method or a mask of a user's own is held to the same rules without a line of ours:

    takes:
      training_images: data.N     # data: the setting that says how many there are, if one does; the hold-out included
      trains: true                # a method: it trains with gradients
      masks: {beta: {above: 0}}   # a method: it uses mask and fill: true, false, or under which settings
      needs: [checkpoint]         # a method: settings it cannot do without
      fills: false                # a mask: there is nothing to fill
      images: 2                   # a method or fill: images that it needs of a micro-batch at least
      label: KD                   # what reports call it; see robustft/cli/display.py for this and the next three
      marker: {colour: "#009E73", shape: d}
      order: 70                   # a method: where it stands in reports, from the zero-shot model (0) on
      dial: beta                  # a method: the setting that makes a curve of it
      settings:                   # full names; `*` at the end stands for any last part
        mask.layers: {kind: whole, from: 1, or_null: true, when: [{mask.cam: {of: [relevance]}}]}
      name: folders               # how it is chosen, data=folders, where nothing else in it says so
      brings: {model: vitb32}     # options of other groups that come with it unless they are typed
      open: [data.shifts]         # places for names of the user's own
      files: true                 # data: its images are files, of which `prepare=true` can make copies
      needs: {data.train: …}      # data: settings it cannot do without; see robustft/cli/places.py
      places: {data.root: …}      # data: settings that name folders and files; see there

A description has a `kind` (number, the default; whole, flag, text; numbers, texts: a list of it), or `of` (a list to
choose from), or `any` (of several descriptions), or `match` (a pattern, with `words` for it); bounds (`from`, `to`
belong to the range, `above`, `below` do not); and `or_null`. `when` says where a setting matters: in one of several
cases, each of which asks of some settings that they are as described. Without it a setting matters always.

Of the core's, `by` names the group whose component may take the setting: without one that does it means nothing.

A setting that nobody describes means nothing, except in a group whose component has no `takes`: that takes anything.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustft.common.configs import flatten, without_takes

Description = Mapping[str, Any]
Case = Mapping[str, Description]

# Names that may come later in the description of a setting's value.
FLAG: Description = {"kind": "flag"}
TEXT: Description = {"kind": "text", "or_null": True}
COUNT: Description = {"kind": "whole", "from": 1}
BATCHES: Description = {"any": [COUNT, {"above": 0, "to": 1}], "or_null": True}
NO_NEGATIVE: Description = {"kind": "whole", "from": 0}

TRAINS: Case = {"method.takes.trains": {"of": [True]}}
HOLDOUT: Case = {"data.holdout": {**COUNT, "or_null": True}}
WHOLE_RUN: Case = {"trainer.fast_dev_run": {"of": [False]}}  # else Lightning has its own limits
TIMED: Case = {**TRAINS, **WHOLE_RUN, "trainer.max_time": {"kind": "text"}}
LONG: Case = {**TRAINS, **WHOLE_RUN}
SCORED: list[Case] = [{**LONG, **HOLDOUT}, {**LONG, "data.validate": {"of": ["all"]}}]  # while it trains

CORE: dict[str, Description] = {
    "seed": {
        **{"kind": "whole", "from": 0, "to": 2**32 - 1},
        "when": [TRAINS, {**HOLDOUT, "data.holdout_seed": {"of": [None]}}, {"model.pretrained": {"of": [None]}}],
    },
    "sweep": TEXT,
    "check": {"of": ["data"], "or_null": True},
    "prepare": FLAG,
    "overwrite": FLAG,
    "keep_logits": FLAG,
    "resume": TEXT,
    "threads": {**COUNT, "or_null": True},
    "save_minutes": {"from": 0, "when": [{**TRAINS, "trainer.enable_checkpointing": {"of": [True]}}]},
    "optimizer.lr": {"above": 0, "when": [TRAINS]},
    "optimizer.weight_decay": {"from": 0, "when": [TRAINS]},
    "optimizer.beta2": {"from": 0, "below": 1, "when": [TRAINS]},
    "optimizer.warmup": {"from": 0, "by": "schedule"},
    "optimizer.beta1": {"from": 0, "below": 1, "by": "schedule"},
    "optimizer.max_momentum": {"from": 0, "below": 1, "by": "schedule"},
    "optimizer.base_momentum": {"from": 0, "below": 1, "by": "schedule"},
    "constraint.anchor": {"of": ["zeroshot", "init"], "by": "constraint"},
    "constraint.head": {**FLAG, "by": "constraint"},
    "model.name": {"kind": "text"},
    "model.architecture": {"kind": "text"},
    "model.pretrained": TEXT,
    "model.backbone": {"kind": "anything"},
    "model.backbone.*": {"kind": "anything"},
    "model.tokenizer.*": {"kind": "anything"},
    "data._target_": {"kind": "text"},
    "model.grad_checkpointing": {**FLAG, "by": "method"},
    "model.recipe.threads": {**COUNT, "or_null": True},
    "model.recipe.*": {"kind": "anything", "when": []},  # matters where another setting takes its value from it
    "data.root": TEXT,
    "data.batch_size": {**COUNT, "when": [TRAINS]},
    "data.eval_batch_size": COUNT,
    "data.holdout": {**NO_NEGATIVE, "or_null": True},
    "data.holdout_seed": {**NO_NEGATIVE, "or_null": True, "when": [HOLDOUT]},
    "data.eval_images": {**COUNT, "or_null": True},
    "data.num_workers": {**NO_NEGATIVE, "or_null": True},
    "data.validate": {"of": ["holdout", "all"], "when": [TRAINS]},
    "trainer.accelerator": {"of": ["auto", "cpu", "gpu", "cuda", "mps"]},
    # Others split the model, or start processes that the evaluation after training is not part of.
    "trainer.strategy": {
        "any": [{"of": ["auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"]}],
        "words": "{}: others do not work with two backward passes a step, or lose their results",
    },
    "trainer.devices": {"kind": "devices"},
    "trainer.num_nodes": COUNT,
    "trainer.precision": {"of": ["auto", "32-true", "bf16-mixed", "16-mixed", 32, "32", "bf16", 16, "16"]},
    "trainer.fast_dev_run": {"any": [FLAG, COUNT]},
    "trainer.max_epochs": {**COUNT, "or_null": True, "when": [LONG]},
    "trainer.min_epochs": {**COUNT, "or_null": True, "when": [TIMED]},
    "trainer.max_steps": {"any": [COUNT, {"of": [-1]}], "words": "{}, or -1 for no limit", "when": [LONG]},
    "trainer.min_steps": {**COUNT, "or_null": True, "when": [TIMED]},
    "trainer.max_time": {
        "match": r"(?=.*[1-9])\d+:([01]\d|2[0-3]):[0-5]\d:[0-5]\d",
        **{"words": "a time above 0 as days:hours:minutes:seconds, 00:12:00:00", "or_null": True, "when": [LONG]},
    },
    "trainer.limit_train_batches": {**BATCHES, "when": [LONG]},
    "trainer.limit_val_batches": {**BATCHES, "when": [WHOLE_RUN]},
    "trainer.val_check_interval": {**BATCHES, "when": SCORED},
    "trainer.check_val_every_n_epoch": {**COUNT, "when": SCORED},
    "trainer.log_every_n_steps": {**COUNT, "when": [TRAINS]},
    "trainer.enable_checkpointing": {**FLAG, "or_null": True},
    "trainer.enable_progress_bar": FLAG,
    "trainer.enable_model_summary": {**FLAG, "when": [TRAINS]},
    "trainer.accumulate_grad_batches": {"any": [COUNT, {"of": ["auto"]}], "when": [TRAINS]},
    "trainer.gradient_clip_val": {"above": 0, "or_null": True, "when": [TRAINS]},
    "trainer.gradient_clip_algorithm": {
        "of": ["norm", "value"],
        "when": [{**TRAINS, "trainer.gradient_clip_val": {"above": 0}}],
    },
    "trainer.deterministic": {"any": [FLAG, {"of": ["warn"]}], "or_null": True},
    "trainer.benchmark": {
        **{**FLAG, "or_null": True},
        "when": [
            {"trainer.accelerator": {"of": ["auto", "gpu", "cuda"]}, "trainer.deterministic": {"of": [None, False]}}
        ],
    },
    "trainer.profiler": {"of": ["simple", "advanced", "pytorch"], "or_null": True},
    "trainer.detect_anomaly": {**FLAG, "when": [TRAINS]},
    "logger.wandb.project": {"kind": "text"},
    "logger.wandb.entity": TEXT,
    "logger.wandb.offline": {**FLAG, "or_null": True},
    "logger.wandb.group": TEXT,
    "logger.wandb.job_type": TEXT,
    "logger.wandb.tags": {"kind": "texts", "or_null": True},
    "logger.wandb.log_model": {**FLAG, "when": [{"trainer.enable_checkpointing": {"of": [True]}}]},
}

# What is there to read and not to set.
CHOSEN = {
    "method.name": "choose the method by its group: method=NAME",
    "mask.kind": "choose the mask by its group: mask=NAME",
    "fill.kind": "choose the fill by its group: fill=NAME",
    "schedule.name": "choose the schedule by its group: schedule=NAME",
    "augment.kind": "choose the augmentation by its group: augment=NAME",
}
# What could be expected to be a setting, and why it is none.
REFUSED = {
    "optimizer.betas": "the first is cycled by the schedule: set optimizer.base_momentum and optimizer.max_momentum,"
    " and optimizer.beta2 for the second",
    "trainer.logger": "loggers are chosen by their group: logger=csv, wandb or none",
    "trainer.callbacks": "callbacks are objects, which cannot be typed",
    "trainer.default_root_dir": "a run's folder is chosen with hydra.run.dir=DIR",
    "trainer.limit_test_batches": "there is no test loop: validation goes through all sets, trainer.limit_val_batches",
    "trainer.limit_predict_batches": "there is no prediction loop: predictions come with the evaluation",
    "trainer.overfit_batches": "it would train on the hold-out; use trainer.limit_train_batches",
    "trainer.num_sanity_val_steps": "the zero-shot evaluation goes through every set before training begins",
    "trainer.inference_mode": "evaluations need no gradients either way, and maps get theirs",
    "trainer.use_distributed_sampler": "the samplers here share images out to devices, none twice and none left out",
    "trainer.barebones": "it would switch off what a run leaves; trainer.enable_progress_bar=false logger=none is near",
    "trainer.plugins": "plugins are objects, which cannot be typed; use trainer.precision and trainer.strategy",
    "trainer.sync_batchnorm": "the models have no batch normalisation",
    "trainer.reload_dataloaders_every_n_epochs": "the order of images is a function of seed and epoch as it is",
    "trainer.enable_autolog_hparams": "all settings are logged by the run itself",
    "trainer.model_registry": "models stay in the run's folder; for W&B use logger.wandb.log_model=true",
}
ALWAYS: Description = {"kind": "anything"}
OF_TRAINING = ("schedule", "constraint")  # groups that a method makes something of if it trains


def accepts(described: Description, value: Any) -> bool:
    """Whether ``value`` is one that a description allows."""
    if described.get("kind") == "anything":
        return True
    if value is None:
        return bool(described.get("or_null")) or None in described.get("of", ())
    if "any" in described:
        return any(accepts(one, value) for one in described["any"])
    if "of" in described:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in described["of"])
    if "match" in described:
        return isinstance(value, str) and re.fullmatch(described["match"], value) is not None
    kind = described.get("kind", "number")
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str) and value != ""
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(one, str) and one for one in value)
    if kind == "devices":
        return _is_devices(value)
    if kind == "numbers":
        one = {**described, "kind": "number", "or_null": False}
        return isinstance(value, list) and bool(value) and all(accepts(one, item) for item in value)
    number = isinstance(value, int if kind == "whole" else int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and _within(described, value)


def _within(described: Description, value: float) -> bool:
    low, high = described.get("from", -math.inf), described.get("to", math.inf)
    return low <= value <= high and described.get("above", -math.inf) < value < described.get("below", math.inf)


def _is_devices(value: Any) -> bool:
    if isinstance(value, str) and re.fullmatch(r"\d+(,\d+)*,?", value):  # "2" devices, or "0,1,": those
        return int(value) > 0 if value.isdigit() else True
    if isinstance(value, list):
        distinct = len(set(map(repr, value))) == len(value)
        return bool(value) and distinct and all(accepts(NO_NEGATIVE, one) for one in value)
    return value in ("auto", "-1", -1) or accepts(COUNT, value)


def expected(described: Description) -> str:
    """What a description allows, in words."""
    return _words(described) + (", or null" if described.get("or_null") else "")


def _words(described: Description) -> str:
    kind = described.get("kind", "number")
    if "any" in described:
        either = " or ".join(_words(one) for one in described["any"] if one.get("of") != [-1])
        return described.get("words", "{}").format(either)
    if "match" in described:
        return described["words"]
    if "of" in described:
        options = list(dict.fromkeys(shown(one) for one in described["of"]))  # 32 and "32" are typed alike
        return "one of " + ", ".join(options) if len(options) > 1 else options[0]
    fixed = {
        "flag": "true or false",
        "text": "text",
        "texts": "a list of text",
        "devices": "auto, a whole number above 0, -1 (all), or a list",
    }
    if kind in fixed:
        return fixed[kind]
    if kind == "numbers":
        return f"a list, each of it {_words({**described, 'kind': 'number'})}"
    number = "a whole number" if kind == "whole" else "a number"
    bounds = {side: described[side] for side in ("from", "to", "above", "below") if side in described}
    match bounds:
        case {"above": low, "below": high}:
            return f"{number} between {low} and {high}, both excluded"
        case {"from": low, "to": high}:
            return f"{number} from {low} to {high}"
        case {"from": low, "below": high}:
            return f"{number}, {low} or more and below {high}"
        case {"above": low, "to": high}:
            return f"{number} above {low}, {high} at most"
        case {"from": low}:
            return f"{number}, {low} or more"
        case {"above": low}:
            return f"{number} above {low}"
    return number


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def _takes(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(component, what it says of itself): of groups, and of the members of groups that can have several."""
    for key, node in plain.items():
        if isinstance(node, dict) and key != "takes":
            if isinstance(node.get("takes"), dict):
                yield f"{prefix}{key}", node["takes"]
            if not prefix:
                yield from _takes(node, f"{key}.")


class Settings:
    """A composed config as plain values, and what its components make of them.

    Attributes:
        values: every leaf by its dotted name, references resolved.
    """

    def __init__(self, cfg: DictConfig) -> None:
        plain, raw = (OmegaConf.to_container(cfg, resolve=resolve) for resolve in (True, False))
        assert isinstance(plain, dict) and isinstance(raw, dict)
        self._init(plain, raw)

    def _init(self, plain: dict[Any, Any], raw: dict[Any, Any]) -> None:
        self.takes = dict(_takes(plain))
        self.values = dict(flatten(without_takes(plain)))
        self._raw = {name: value for name, value in flatten(without_takes(raw)) if isinstance(value, str)}
        self._described = {"core": CORE} | {key: takes.get("settings") or {} for key, takes in self.takes.items()}

    def descriptions(self, name: str) -> Iterator[tuple[str, Description]]:
        """(who, description) of a setting, by everyone who takes it."""
        wildcards = [f"{name[:dot]}.*" for dot in (m.start() for m in re.finditer(r"\.", name))]
        found = False
        for owner, described in self._described.items():
            for key in (name, *wildcards):
                if key in described:
                    found = True
                    yield owner, described[key]
                    break
        group = name.partition(".")[0]
        described = any(name.startswith(f"{owner}.") for owner in self.takes)
        if not found and name in self.values and (("." in name and not described) or self._selects(name)):
            yield group, ALWAYS

    def _selects(self, name: str) -> bool:
        """Names of components, a data module's class: chosen together with everything else of theirs."""
        return name.endswith((".name", ".kind", "._target_"))

    def is_taken(self, name: str) -> bool:
        """Whether somebody makes something of a setting, whatever the others are."""
        return next(self.descriptions(name), None) is not None

    def matters(self, name: str) -> bool:
        """Whether a change of this setting changes anything in this run."""
        return self.why_idle(name) is None

    def why_idle(self, name: str) -> str | None:
        """What makes a setting mean nothing, as ``name=value``; None where it matters."""
        reasons = []
        for owner, described in self.descriptions(name):
            by = described.get("by")
            reason = self.closed(owner) or (self.chosen(by) if by else self._unmet(described.get("when")))
            if reason is None:
                return None
            reasons.append(reason)
        inside = [leaf for leaf in self.values if leaf.startswith(f"{name}.")]
        idle = [self.why_idle(leaf) for leaf in inside]
        if None in idle:
            return None
        reference = re.compile(r"\$\{" + re.escape(name) + r"\}")
        if any(self.matters(user) for user, raw in self._raw.items() if reference.search(raw)):
            return None
        group = name.partition(".")[0]
        if name == group and group not in ("mask", "fill"):
            reasons += [reason for reason in idle if reason is not None]
        if group in ("mask", "fill") or (group in self.takes and group != "method"):
            reasons.append(self.closed(group) or self.chosen(group))
        return next((reason for reason in reasons if reason), self.chosen("method"))

    def masks(self) -> str | None:
        """What keeps the method from using masks, as ``name=value``."""
        masks = self.takes.get("method", {}).get("masks", False)
        if isinstance(masks, bool):
            return None if masks else self.chosen("method")
        return self._unmet([masks])

    def closed(self, group: str) -> str | None:
        """Why a whole component has no effect."""
        if group.partition(".")[0] in OF_TRAINING and not self.takes.get("method", {}).get("trains", True):
            return self.chosen("method")
        if group == "augment" and self.takes.get("method", {}).get("features"):
            return self.chosen("method")  # features are of images that stay
        if group not in ("mask", "fill"):
            return None
        if reason := self.masks():
            return reason
        fills = self.takes.get("mask", {}).get("fills", True)
        return None if group == "mask" or fills else self.chosen("mask")

    def holds(self, case: Case) -> bool:
        """Whether settings are as ``case`` describes them."""
        return all(accepts(described, self._value(name)) for name, described in case.items())

    def _unmet(self, cases: Sequence[Case] | None) -> str | None:
        """The first condition that does not hold; None where one of the cases does."""
        if cases is None:
            return None
        unmet = []
        for case in cases:
            failed = [name for name, described in case.items() if not accepts(described, self._value(name))]
            if not failed:
                return None
            unmet.append(failed[0])
        return self._as_typed(unmet[0]) if unmet else ""

    def _value(self, name: str) -> Any:
        group, _, rest = name.partition(".takes.")
        return self.takes.get(group, {}).get(rest) if rest else self.values.get(name)

    def _as_typed(self, name: str) -> str:
        return self.chosen(name.partition(".")[0]) if ".takes." in name else f"{name}={shown(self.values.get(name))}"

    def chosen(self, group: str) -> str:
        """A component as it is chosen: mask=object."""
        if "." in group:  # one of several: constraint=l2sp
            return "=".join(group.split(".", 1))
        names = [
            *(self.values.get(f"{group}.{key}") for key in ("kind", "name")),
            self.takes.get(group, {}).get("name"),
        ]
        return f"{group}={next((name for name in names if name is not None), 'none')}"
