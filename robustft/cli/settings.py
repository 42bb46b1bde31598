"""What settings a run has, and where they matter: the question that a run, a sweep or a study is checked by.

Settings of the core are described in robustft/cli/core_settings.py. Components describe theirs in their own YAML, under
`takes`, so that a method or a mask of a user's own is held to the same rules without a line of ours:

    takes:
      training_images: data.N     # data: the setting that says how many there are, if one does; the hold-out included
      trains: true                # a method: it trains with gradients
      masks: {beta: {above: 0}}   # a method: it uses mask and fill: true, false, or under which settings
      teaches: {beta: {above: 0}} # a method: a teacher takes part, which may move; likewise
      says: {moving.name: {of: [ema]}}  # a method: how an average moves where the method's label says it already
      text: true                  # a method: it needs a zero-shot model, which a text tower makes; frozen: its head is
                                  # made of the text tower, with random weights too; trained: that tower is trained
      head: text                  # a method: where its head comes from, where that is not the zero-shot one (protocol)
      models: 2                   # a method: models that an image goes through; 1 where it does not say
      leaves_model: false         # a method: what it gives is no single model that could be saved
      transductive: true          # a method: it looks at the unlabelled test set, and is reported apart
      needs: [checkpoint]         # a method: settings it cannot do without
      checkpoints: 2              # a method: models that `checkpoints` has to name at least; else 1
      published: {optimizer.lr: 1.0e-5}  # a method or constraint: what recipe=published sets (robustft/cli/recipes.py)
      given_maps: true            # a method: maps of the training images that are known before can be given to it
      fills: false                # a mask: there is nothing to fill
      images: 2                   # a method or fill: images that it needs of a micro-batch at least
      when: [{method.takes.head: {of: [null]}}]  # any component: where it means something, as beside a setting
      label: KD                   # what reports call it; see robustft/cli/display.py for this and the next three
      marker: {colour: "#009E73", shape: d}
      order: 70                   # a method: where it stands in reports, from the zero-shot model (0) on
      dial: beta                  # a method: the setting that makes a curve of it
      settings:                   # full names; `*` at the end stands for any last part
        mask.layers: {kind: whole, from: 1, or_null: true, when: [{mask.cam: {of: [relevance]}}]}
      name: folders               # how it is chosen, data=folders, where nothing else in it says so
      brings: {model: vitb32}     # options of other groups that come with it unless they are typed
      open: [data.shifts]         # places for names of the user's own
      objects: true               # data: it knows where the objects are in its training images
      files: true                 # data: its images are files, of which `prepare=true` can make copies
      needs: {data.train: …}      # data: settings it cannot do without; see robustft/cli/places.py
      places: {data.root: …}      # data: settings that name folders and files; see there

What a description says is in robustft/cli/accepted.py. `when` beside it says where a setting matters: in one of
several cases, each of which asks of some settings that they are as described. Without it a setting matters always.

Of the core's, `by` names the group whose component may take the setting: without one that does it means nothing.

A setting that nobody describes means nothing, except in a group whose component has no `takes`: that takes anything.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustft.cli.accepted import Description, accepts, shown
from robustft.cli.core_settings import CORE, Case
from robustft.common.configs import flatten, without_takes

ALWAYS: Description = {"kind": "anything"}
# Groups that a method makes something of if it trains.
OF_TRAINING = ("recipe", "schedule", "constraint", "moving", "train")
OF_WHOLE = ("moving", "train")  # if it trains more than a head on known features


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
        wildcards += [f"{name.partition('.')[0]}.*.{name.rpartition('.')[2]}"] * (name.count(".") == 2)
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
        reasons: list[str | None] = []
        for owner, described in self.descriptions(name):
            by = described.get("by")
            unmet = (self.closed(by) or self.chosen(by)) if by else self._unmet(described.get("when"))
            reason = self.closed(owner) or unmet
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
        elif group in OF_TRAINING:  # a constraint, of which there can be several
            reasons.append(self.closed(group))
        return next((reason for reason in reasons if reason), self.chosen("method"))

    def masks(self) -> str | None:
        """What keeps the method from using masks, as ``name=value``."""
        return self._missing("masks")

    def teaches(self) -> str | None:
        """What keeps a teacher from taking part, as ``name=value``."""
        return self._missing("teaches")

    def _missing(self, trait: str) -> str | None:
        case = self.takes.get("method", {}).get(trait, False)
        if isinstance(case, bool):
            return None if case else self.chosen("method")
        return self._unmet([case])

    def closed(self, group: str) -> str | None:
        """Why a whole component has no effect."""
        if (reason := self._unmet(self.takes.get(group, {}).get("when"))) is not None:
            return reason
        method = self.takes.get("method", {})
        if group.partition(".")[0] in OF_TRAINING and not method.get("trains", True):
            return self.chosen("method")
        if group in OF_WHOLE and method.get("features"):
            return self.chosen("method")
        if group.partition(".")[0] == "constraint" and self.takes.get("train", {}).get("constraints") is False:
            return self.chosen("train")
        if group == "moving" and self.values.get("result") != "average":
            idle = "moving.teaches=false" if self.values.get("moving.teaches") is False else self.teaches()
            return "result=student" if idle == self.chosen("method") else idle
        if group == "augment" and method.get("features"):
            return self.chosen("method")  # features are of images that stay
        if group not in ("mask", "fill"):
            return None
        if reason := self.masks():
            return reason
        fills = self.takes.get("mask", {}).get("fills", True)
        return None if group == "mask" or fills else self.chosen("mask")

    def forbidden(self, described: Description, value: Any) -> str | None:
        """What does not go with a value that needs others to be as its description says (``only``)."""
        case = (described.get("only") or {}).get(value) if isinstance(value, str) else None
        return None if case is None else self._unmet([case])

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
        if name == "method.takes.teaches":  # which may depend on settings
            return self.teaches() is None
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
