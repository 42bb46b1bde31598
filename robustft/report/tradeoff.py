"""Trade-off curves beside each other: OOD at matched ID, paired by seed.

β (or α) moves a method along a curve from high ID to high OOD accuracy, and at one fixed β two methods are held back
to different degrees. So what is compared is where the curves lie, not where one point of each falls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustft.evaluation.summary import percent, signed
from robustft.report.stats import Difference, mean_std, ood_at_matched_id, paired_difference

Curve = Sequence[tuple[float, float]]  # (ID, OOD average) of one seed, one point for each value of the dial
POINTS = 21


@dataclass(frozen=True)
class Matched:
    """Mean OOD of each curve over the ID range that all curves of a seed share, by seed."""

    ood: dict[str, dict[int | None, float]]
    shared: dict[int, tuple[float, float]]  # that ID range, by seed

    def difference(self, name: str, base: str) -> Difference | None:
        """OOD at matched ID of ``name`` minus that of ``base``, paired by seed; None with no seed in common."""
        return paired_difference(self.ood[name], self.ood[base])


def match(curves: Mapping[str, Mapping[int, Curve]]) -> Matched:
    """Compare ``curves[name][seed]`` over the ID range that they share within each seed.

    A seed whose curves share no range is left out.
    """
    seeds = set.intersection(*(set(by_seed) for by_seed in curves.values()))
    ood: dict[str, dict[int | None, float]] = {name: {} for name in curves}
    shared = {}
    for seed in sorted(seeds):
        low = max(min(x for x, _ in by_seed[seed]) for by_seed in curves.values())
        high = min(max(x for x, _ in by_seed[seed]) for by_seed in curves.values())
        if low >= high:
            continue
        shared[seed] = (low, high)
        for name, by_seed in curves.items():
            xs, ys = zip(*by_seed[seed], strict=True)
            values = [ood_at_matched_id(xs, ys, at) for at in np.linspace(low, high, POINTS)]
            ood[name][seed] = float(np.mean([value for value in values if value is not None]))
    return Matched(ood, shared)


def contrast(curves: Mapping[str, Mapping[int, Curve]], pairs: Sequence[tuple[str, str]]) -> Difference | None:
    """Average over ``pairs`` OOD at matched ID, first minus second, paired by seed.

    Each pair is compared over the ID range that its own two curves share: many curves together may share none. A seed
    in which a pair shares none is left out.
    """
    differences: dict[int, list[float]] = {}
    for name, base in pairs:
        matched = match({name: curves[name], base: curves[base]})
        for seed in matched.shared:
            differences.setdefault(seed, []).append(matched.ood[name][seed] - matched.ood[base][seed])
    means: dict[int | None, float] = {
        seed: float(np.mean(found)) for seed, found in differences.items() if len(found) == len(pairs)
    }
    return paired_difference(means, dict.fromkeys(means, 0.0))


def markdown(matched: Matched, base: str) -> str:
    """Write a table of the curves: mean OOD over the shared range, and the paired difference to ``base``."""
    lines = [
        f"| curve | seeds | OOD avg at matched ID | Δ to {base} [95% interval] | p |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, by_seed in matched.ood.items():
        if not by_seed:
            lines.append(f"| {name} | 0 | – | – | – |")
            continue
        mean, std = mean_std(list(by_seed.values()))
        shown = percent(mean) + (f" ± {percent(std)}" if std is not None else "")
        change, p = cells(None if name == base else matched.difference(name, base))
        lines.append(f"| {name} | {len(by_seed)} | {shown} | {change} | {p} |")
    if matched.shared:
        lows, highs = zip(*matched.shared.values(), strict=True)
        span = f"{percent(min(lows))}–{percent(max(lows))} to {percent(min(highs))}–{percent(max(highs))}"
        lines += ["", f"Shared ID range of a seed's curves: from {span} (over seeds)."]
    return "\n".join(lines) + "\n"


def cells(found: Difference | None) -> tuple[str, str]:
    """Write a difference of accuracies as a table shows it, in points: mean [95% interval], and p."""
    if found is None:
        return "–", "–"
    change = signed(found.mean)
    if found.low is not None and found.high is not None:
        change += f" [{signed(found.low)}, {signed(found.high)}]"
    return change, "–" if found.p is None else "<0.001" if found.p < 0.0005 else f"{found.p:.3f}"
