"""The ID–OOD scatter for a paper: shape per fill and colour per mask, one marker per other method."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustft.common import homes
from robustft.evaluation.results import set_label
from robustft.report.groups import Group, curves
from robustft.report.runs import Record
from robustft.report.stats import LogitLine, mean_std

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any colour vision; shapes tell the same in grey.
MASKS = {"object": "#D55E00", "context": "#0072B2", "random": "#009E73", "none": "#E69F00"}
FILLS = {"none": "o", "single": "^", "multi": "s"}
METHODS = {
    "zeroshot": ("#000000", "*"),
    "finetune": ("#000000", "X"),
    "linear_probe": ("#56B4E9", "P"),
    "lpft": ("#56B4E9", "v"),
    "wiseft": ("#CC79A7", "D"),
    "kd": ("#009E73", "d"),
    "published": ("#999999", "o"),
}
OTHER = ("#CC79A7", ">")


@dataclass(frozen=True)
class Style:
    """How a system is drawn and called in the legend."""

    colour: str
    marker: str
    name: str


def style(group: Group) -> Style:
    """Masked methods by mask and fill; the others by method."""
    record = group.record
    method, kind = record["method"], _mask_kind(record)
    if "soup" in group.label:
        return Style("#E69F00", "h" if "greedy" in group.label else "p", group.label.split(" (")[0])
    if method == "published":
        return Style(*METHODS[method], group.label)
    if method in ("counterfactual", "kd") and kind != "none":
        fill = record["fill"] or "none"
        name = f"{kind} mask, {'no' if fill == 'none' else fill}-fill"
        if method == "kd":
            return Style(METHODS["kd"][0], FILLS.get(fill, OTHER[1]), f"KD, {name}")
        return Style(MASKS.get(kind, OTHER[0]), FILLS.get(fill, OTHER[1]), name)
    if method == "counterfactual":
        return Style(MASKS["none"], FILLS["none"], "distillation, no mask")
    colour, marker = METHODS.get(method, OTHER)
    return Style(colour, marker, group.label.split(",")[0].split(" (")[0])


def _mask_kind(record: Record) -> str:
    return (record["mask"] or {}).get("kind") or "none"


def scatter(panels: Sequence[Sequence[Group]], path: Path, line: LogitLine | None = None) -> list[Path]:
    """Draw one panel per model and ID set to `path` with the suffixes .png and .svg; return the files.

    Groups are drawn at their mean with standard deviations, members of a published collection one by one. `line`
    is the baselines' fit (effective robustness).
    """
    homes.stand_in()
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * len(panels) + 2.2, 4.6), layout="constrained")
    for ax, groups in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(ax, groups, line)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text in the SVG, and the same runs give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "robustft"}):
        for file in files:
            figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def _draw(ax: "Axes", groups: Sequence[Group], line: LogitLine | None) -> None:
    drawn: dict[str, Artist] = {}
    for group in groups:
        look = style(group)
        points = [(100 * x, 100 * y) for x, y in group.points()]
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        (x, x_std), (y, y_std) = mean_std(xs), mean_std(ys)
        front = 4 if group.record["method"] == "zeroshot" else 3
        if group.published and len(points) > 1:
            drawn[look.name] = ax.scatter(xs, ys, s=14, c=look.colour, alpha=0.6, linewidths=0, zorder=2)
            continue
        if x_std is not None:
            ax.errorbar(x, y, y_std, x_std, color=look.colour, linewidth=0.9, capsize=0, alpha=0.8, zorder=2)
        size = 150 if look.marker == "*" else 55 if len(groups) < 40 else 28
        handle = ax.scatter(
            x, y, s=size, c=look.colour, marker=look.marker, edgecolors="white", linewidths=0.6, zorder=front
        )
        drawn.setdefault(look.name, handle)
    for curve in curves(groups, "alpha") + curves(groups, "beta"):
        ends = [tuple(zip(*points, strict=True)) for group in curve.groups if (points := group.points())]
        means = [(100 * mean_std(x)[0], 100 * mean_std(y)[0]) for x, y in ends]
        look, dashes = style(curve.groups[0]), "-" if curve.dial == "alpha" else ":"
        ax.plot(*zip(*means, strict=True), dashes, color=look.colour, linewidth=1, zorder=1)
        if (name := {"alpha": "over α", "beta": "over β"}[curve.dial]) not in drawn:
            (drawn[name],) = ax.plot([], [], dashes, color="#555555", linewidth=1)
    if line:
        low, high = ax.get_xlim()
        at = [low + (high - low) * k / 60 for k in range(61) if 0 < low + (high - low) * k / 60 < 100]
        fit = [100 * line.ood(x / 100) for x in at]
        (drawn["baselines' line"],) = ax.plot(at, fit, "--", color="#777777", linewidth=0.9, zorder=1)
        ax.set_xlim(low, high)
    model, id_name = groups[0].runs[0].panel
    ax.set(
        xlabel=f"ID: {set_label(id_name)}, top-1 (%)",
        ylabel="OOD: mean of the shifts, top-1 (%)",
        title=model,
    )
    ax.grid(color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(drawn.values(), drawn.keys(), fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.01))
