"""A forest plot: differences with their intervals, a line each."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from robustft.report.stats import Difference

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's
SHAPES = "osD^"
LINE = 0.3  # inches


def forest(
    file: Path,
    series: Mapping[str, Mapping[str, Difference]],
    *,
    what: str,
    title: str,
    noise: float = 0.0,
    hollow: Collection[str] = (),
) -> None:
    """Draw differences in points, each with its interval, from the top down in the order of the first series.

    Args:
        file: a .png or .svg.
        series: by what the legend calls them, differences (fractions) by the name of their line; one that has no
            interval is a point alone.
        what: below the axis.
        noise: half the width of the band around zero that is taken for nothing, a fraction.
        hollow: lines whose points are rings: what is not shown to differ, say.

    Raises:
        ValueError: there are more series than colours, or none.

    Example:
        >>> found = {"a": Difference(0.01, 0.002, 0.018, 0.02, 5), "b": Difference(-0.01, -0.03, 0.01, 0.2, 5)}
        >>> forest(Path("gain.png"), {"on styles": found}, what="OOD, points", title="Gain")  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    if not 0 < len(series) <= len(COLOURS):
        raise ValueError(f"{len(series)} series: give 1 to {len(COLOURS)}")
    names = list(dict.fromkeys(name for found in series.values() for name in found))
    figure = Figure(figsize=(7.6, LINE * len(names) + 1.2), layout="constrained")
    ax = figure.subplots()
    for number, (label, found) in enumerate(series.items()):
        shift = 0.26 * (number - (len(series) - 1) / 2)
        places = [names.index(name) + shift for name in found]
        centre = [100 * one.mean for one in found.values()]
        below = [100 * (one.mean - (one.mean if one.low is None else one.low)) for one in found.values()]
        above = [100 * ((one.mean if one.high is None else one.high) - one.mean) for one in found.values()]
        look: dict[str, Any] = {"fmt": SHAPES[number], "color": COLOURS[number], "markersize": 4, "linewidth": 1.2}
        ax.errorbar(centre, places, xerr=[below, above], label=label, **look)
        rings = [(x, y) for x, y, name in zip(centre, places, found, strict=True) if name in hollow]
        for x, y in rings:
            ax.plot(x, y, "o", color="white", markersize=2.2, zorder=3)
    ax.axvline(0, color="#333333", linewidth=0.8)
    if noise:
        ax.axvspan(-100 * noise, 100 * noise, color="#eeeeee", zorder=0)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel=what, title=title)
    ax.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        ax.legend(frameon=False, loc="best")
    figure.savefig(file, dpi=160)
