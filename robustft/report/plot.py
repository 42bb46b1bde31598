"""The ID–OOD scatter for a paper: shape per fill and colour per mask, one marker per other method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from robustft.common import homes
from robustft.evaluation.summary import set_label
from robustft.report.groups import Group, curves, panel_title
from robustft.report.stats import LogitLine, mean_std

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

OTHER = ("#CC79A7", ">")  # of a system that does not say
DASHES = {"alpha": "-", None: ":"}
TOP1 = {"label": "top-1", "unit": "%"}
SHAPES = "o^svD<>pPXhd8H"  # for systems that would look like another
LINES = 24  # of a legend's column
LINE, COLUMN = 0.19, 2.9  # their height and width in inches


@dataclass(frozen=True)
class Style:
    """How a system is drawn and called in the legend."""

    colour: str
    marker: str
    name: str


def style(group: Group) -> Style:
    """As the system's results say; members of a published collection in grey."""
    if group.published:
        return Style("#999999", "o", group.label)
    told = group.runs[0].display
    return Style(told["marker"]["colour"] or OTHER[0], told["marker"]["shape"] or OTHER[1], told["label"])


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """By what the legend calls them, how systems are drawn: no two alike, as far as there are shapes."""
    found: dict[str, Style] = {}
    for group in groups:
        look = style(group)
        if look.name in found:
            continue
        taken = {(other.colour, other.marker) for other in found.values()}
        free = (shape for shape in (look.marker, *SHAPES) if (look.colour, shape) not in taken)
        found[look.name] = look if group.published else replace(look, marker=next(free, look.marker))
    return found


def scatter(
    panels: Sequence[Sequence[Group]], path: Path, line: LogitLine | None = None, metric: str | None = None
) -> list[Path]:
    """Draw one panel per model and ID set to `path` with the suffixes .png and .svg; return the files.

    The axes are the ID set and the mean of the shifts, by top-1 or another `metric`. Groups are drawn at their mean
    with standard deviations, members of a published collection one by one. `line` is the baselines' fit (effective
    robustness).
    """
    homes.stand_in()
    import matplotlib
    from matplotlib.figure import Figure

    longest = max(len(styles(groups)) for groups in panels) + 3  # and what lines mean
    columns = -(-longest // LINES)
    size = ((3.2 + COLUMN * columns) * len(panels) + 1.5, max(4.6, LINE * min(longest, LINES) + 0.6))
    figure = Figure(figsize=size, layout="constrained")
    for ax, groups in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(ax, groups, line, metric)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text in the SVG, and the same runs give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "robustft"}):
        for file in files:
            figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def _draw(ax: "Axes", groups: Sequence[Group], line: LogitLine | None, metric: str | None) -> None:
    drawn: dict[str, Artist] = {}
    told = next((t for g in groups if metric and (t := g.record.get("metrics", {}).get(metric))), TOP1)
    scale = 100 if told["unit"] == "%" else 1
    axes = (f"id.{metric}", f"ood_avg.{metric}") if metric else ("id", "ood_avg")

    def scaled(group: Group) -> list[tuple[float, float]]:
        return [(scale * x, scale * y) for x, y in group.points(*axes)]

    looks = styles(groups)
    for group in groups:
        look = looks[style(group).name]
        points = scaled(group)
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        (x, x_std), (y, y_std) = mean_std(xs), mean_std(ys)
        front = 4 if group.reference else 3
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
    for curve in curves(groups):
        ends = [tuple(zip(*points, strict=True)) for group in curve.groups if (points := scaled(group))]
        means = [(mean_std(x)[0], mean_std(y)[0]) for x, y in ends]
        if not means:
            continue
        look, dashes = looks[style(curve.groups[0]).name], DASHES.get(curve.dial, DASHES[None])
        ax.plot(*zip(*means, strict=True), dashes, color=look.colour, linewidth=1, zorder=1)
        if (name := f"over {curve.name}") not in drawn:
            (drawn[name],) = ax.plot([], [], dashes, color="#555555", linewidth=1)
    if line and metric is None:
        low, high = ax.get_xlim()
        at = [low + (high - low) * k / 60 for k in range(61) if 0 < low + (high - low) * k / 60 < 100]
        fit = [100 * line.ood(x / 100) for x in at]
        (drawn["baselines' line"],) = ax.plot(at, fit, "--", color="#777777", linewidth=0.9, zorder=1)
        ax.set_xlim(low, high)
    _, id_name = groups[0].runs[0].panel
    unit = f" ({told['unit']})" if told["unit"] else ""
    ax.set(
        xlabel=f"ID: {set_label(id_name)}, {told['label']}{unit}",
        ylabel=f"OOD: mean of the shifts, {told['label']}{unit}",
        title=panel_title(groups).replace(f" on {set_label(id_name)}", ""),
    )
    ax.grid(color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        drawn.values(),
        drawn.keys(),
        fontsize=8,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.01),
        ncols=-(-len(drawn) // LINES),
    )
