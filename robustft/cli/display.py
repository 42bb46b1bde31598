"""How reports call and draw a run: what its components say of themselves, in ``takes``.

    label: KD                     # "KD", with a mask "KD, object mask, single-fill"; "" leaves it to mask and fill
    marker: {colour: "#009E73", shape: d}   # one of matplotlib's; a mask brings a colour, a fill a shape
    order: 70                     # place in tables
    dial: beta                    # the setting along which runs make a curve

``label`` and ``marker`` may depend on settings: a list of ``{is: ..., when: {setting: description}}``, of which the
first that holds is taken.
"""

from typing import Any

from omegaconf import DictConfig

from robustft.cli.settings import OF_WHOLE, Settings

DIALS = ("method", "constraint", "moving", "train")  # groups whose settings are a system's own
LAST = 1000  # in reports, of a method that does not say


def display(cfg: DictConfig) -> dict[str, Any]:
    """Label (without the values of dials), marker, order and main dial of a run, for its results.

    Args:
        cfg: a resolved config.
    """
    settings = Settings(cfg)
    method, mask, fill = (settings.takes.get(group, {}) for group in ("method", "mask", "fill"))
    masked = settings.masks() is None and mask.get("fills", True)
    own, name = _case(method, "label", settings), str(settings.values["method.name"]).replace("_", " ")
    parts = [name if own is None else own]
    if masked:
        parts += [_case(part, "label", settings) for part in (mask, fill)]
    constraints = [name.partition(".")[2] for name in settings.takes if name.startswith("constraint.")]
    parts += [_case(settings.takes[f"constraint.{name}"], "label", settings) or name for name in constraints]
    said = ["moving"] if "says" in method and settings.holds(method["says"]) else []
    parts += [
        _case(settings.takes.get(group, {}), "label", settings)
        for group in OF_WHOLE
        if group not in said and not settings.closed(group)
    ]
    of_method, of_mask, of_fill = (_case(part, "marker", settings) or {} for part in (method, mask, fill))
    marker = {
        "colour": of_method.get("colour", of_mask.get("colour")),
        "shape": of_fill.get("shape") if masked else of_method.get("shape", of_fill.get("shape")),
    }
    return {
        "label": ", ".join(part for part in parts if part),
        "marker": marker,
        "dial": method.get("dial"),
        "order": method.get("order", LAST),
    }


def dials(cfg: DictConfig) -> dict[str, Any]:
    """The settings of a system that have no place of their own in its results, by dotted name."""
    settings = Settings(cfg)
    return {
        name: value
        for name, value in settings.values.items()
        if name.partition(".")[0] in DIALS
        and not name.endswith(("._target_", ".name"))
        and settings.is_taken(name)
        and settings.matters(name)
    }


def _case(takes: dict[str, Any], key: str, settings: Settings) -> Any:
    told = takes.get(key)
    if not isinstance(told, list):
        return told
    return next((case["is"] for case in told if settings.holds(case.get("when", {}))), None)
