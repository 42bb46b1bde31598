"""What results of schema 1 do not say themselves: how their systems are called and drawn.

From schema 2 on results hold it (``display``), so that reports need to know no system. Nothing is added here any more.
"""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "zeroshot": "zero-shot",
    "finetune": "vanilla fine-tuning",
    "linear_probe": "linear probe",
    "lpft": "LP-FT",
    "wiseft": "WiSE-FT",
    "kd": "KD",
}
MARKERS = {
    "zeroshot": ("#000000", "*"),
    "finetune": ("#000000", "X"),
    "linear_probe": ("#56B4E9", "P"),
    "lpft": ("#56B4E9", "v"),
    "wiseft": ("#CC79A7", "D"),
    "kd": ("#009E73", "d"),
    "uniform soup": ("#E69F00", "p"),
    "greedy soup": ("#E69F00", "h"),
}
MASKS = {"object": "#D55E00", "context": "#0072B2", "random": "#009E73", "none": "#E69F00"}
FILLS = {"none": "o", "single": "^", "multi": "s"}
ORDER = ("zeroshot", "linear_probe", "finetune", "lpft", "wiseft", "soup", "evaluate", "kd", "counterfactual")
DIALS = {"wiseft": "alpha", "kd": "beta", "counterfactual": "beta"}
OTHER = ("#CC79A7", ">")


def display(record: Mapping[str, Any]) -> dict[str, Any]:
    """Make the ``display`` of a record of schema 1."""
    method, mask, fill = record["method"], (record["mask"] or {}).get("kind") or "none", record["fill"] or "none"
    parts = [LABELS.get(method, method.replace("_", " "))]
    if method == "soup":
        parts = ["greedy soup" if (record["config"].get("method") or {}).get("greedy") else "uniform soup"]
    if mask != "none":
        parts = [
            *([] if method == "counterfactual" else parts),
            f"{mask} mask",
            f"{'no' if fill == 'none' else fill}-fill",
        ]
    elif method == "counterfactual":
        parts = ["distillation, no mask"]
    colour, shape = MARKERS.get(parts[0] if method == "soup" else method, OTHER)
    if method == "counterfactual":
        colour = MASKS.get(mask, OTHER[0])
    if mask != "none" or method == "counterfactual":
        shape = FILLS.get(fill, OTHER[1])
    return {
        "label": ", ".join(parts),
        "marker": {"colour": colour, "shape": shape},
        "dial": DIALS.get(method),
        "order": 10 * ORDER.index(method) if method in ORDER else 1000,
    }
