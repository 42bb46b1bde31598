"""The comparison as a table: systems × sets, mean ± std over seeds, differences; Markdown, CSV, LaTeX."""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from robustft.common import terminal
from robustft.common.errors import UserError
from robustft.evaluation.summary import metric_heading, metric_value, percent, set_label, signed
from robustft.report.groups import Group, panel_title
from robustft.report.runs import Run
from robustft.report.stats import LogitLine, effective_robustness, mean_std, paired_difference

LATEX = {"±": r"$\pm$", "−": "$-$", "–": "--", "α": r"$\alpha$", "β": r"$\beta$", "Δ": r"$\Delta$", "†": r"\dag{}"}
LATEX |= {"…": r"\ldots{}", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {letter: f"\\{letter}" for letter in "%_&#${}"}


@dataclass(frozen=True)
class Cell:
    """What a reader sees, the numbers behind it (fractions) by name, and what the best is found by."""

    text: str
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)
    rank: float | None = None


@dataclass(frozen=True)
class Table:
    """One panel (model and ID set) of the comparison."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    sets: range = range(0)  # the columns of single shift sets

    def best(self, column: int) -> float | None:
        ranks = [row[column].rank for row in self.rows]
        return max((rank for rank in ranks if rank is not None), default=None)

    def texts(self, emphasis: str, escape: Callable[[str], str] = str) -> list[list[str]]:
        """Rows as escaped text, the best of each column set in `emphasis` ("**{}**")."""
        best = [self.best(k) for k in range(len(self.columns))]
        mark = len(self.rows) > 2
        return [
            [
                emphasis.format(escape(cell.text)) if mark and cell.rank == top is not None else escape(cell.text)
                for cell, top in zip(row, best, strict=True)
            ]
            for row in self.rows
        ]


def comparison(
    groups: Sequence[Group],
    sets: Sequence[str],
    baselines: Sequence[tuple[str, Group]] = (),
    line: LogitLine | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
    tasks: Sequence[str] = (),
    gaps: Mapping[str, tuple[Sequence[float], bool]] | None = None,
) -> Table:
    """The groups of one panel as rows: accuracies in %, differences and effective robustness in points.

    Args:
        more: further metrics by name, as results describe them: a column each for the ID set and the shifts' mean.
        tasks: other tasks, to see what is still known of them: a column each, and one of the mean change.
        gaps: by label, the gap to the WiSE-FT curve of each seed, and whether one is beyond it.
    """
    _, id_name = groups[0].runs[0].panel
    metrics = {"id": f"ID {set_label(id_name)}", "ood_avg": "OOD avg"} if sets else {"id": f"ID {set_label(id_name)}"}
    metrics |= {name: set_label(name) for name in sets}
    versus = [(name, base, metric) for name, base in baselines for metric in ("id", "ood_avg")]
    columns = ["system", "seeds", *metrics.values()]
    columns += [f"Δ {'ID' if metric == 'id' else 'OOD'} to {name}" for name, _, metric in versus]
    columns += ["eff. robustness"] if line else []
    columns += ["gap to WiSE"] if gaps else []
    further = {
        f"{place}.{name}": (f"{where} {metric_heading(told)}", told)
        for name, told in (more or {}).items()
        for place, where in (("id", "ID"), ("ood_avg", "OOD"))
        if place == "id" or sets
    }
    columns += [heading for heading, _ in further.values()]
    columns += [*(f"knows {name}" for name in tasks), "Δ knows"] if tasks else []
    rows = []
    for group in groups:
        row = [Cell(group.label, {"system": group.label, **_fields(group)}), _seeds(group)]
        row += [_accuracy(group, metric) for metric in metrics]
        row += [_difference(group, base, name, metric) for name, base, metric in versus]
        row += [_robustness(group, line)] if line else []
        row += [_gap(*gaps[group.label])] if gaps else []
        row += [_further(group, key, told) for key, (_, told) in further.items()]
        row += [*(_accuracy(group, f"retention.{name}") for name in tasks), _retention(group)] if tasks else []
        rows.append(row)
    place = columns.index("OOD avg") + 1 if sets else 0
    apart = ", transductive" if groups[0].transductive else ""
    return Table(f"{panel_title(groups)}{apart}", columns, rows, range(place, place + len(sets)))


def find_baseline(groups: Sequence[Group], name: str) -> Group | None:
    """The group of a panel that `name` means: "vanilla", a label, a run's name or a method; None where none does.

    Raises:
        UserError: several fit.
    """
    method = {"vanilla": "finetune", "zero-shot": "zeroshot"}.get(name, name)
    for fits in (
        [group for group in groups if group.label == name],
        [group for group in groups if any(run.record["name"] == name for run in group.runs)],
        [group for group in groups if group.record["method"] == method],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            several = ", ".join(f'"{group.label}"' for group in fits[:6])
            raise UserError(f"The baseline {name} fits {len(fits)} systems: name one of {several}.")
    return None


def _fields(group: Group) -> dict[str, float | int | str | None]:
    record, mask = group.record, group.record["mask"] or {}
    return {
        **{key: record[key] for key in ("model", "method")},
        "recipe": (record.get("protocol") or {}).get("recipe"),
        "mask": mask.get("kind"),
        **{key: mask.get(key) for key in ("threshold", "rate")},
        **{key: record[key] for key in ("fill", "beta", "alpha", "temperature")},
    }


def repeated_note(groups: Sequence[Group]) -> str | None:
    """What a reader should know where a seed has several runs; None where none has."""
    found = [(group.label, seed, count) for group in groups for seed, count in group.repeated.items()]
    if not found:
        return None
    shown = "; ".join(f"{label}, seed {seed}: {count} runs" for label, seed, count in found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return f"Runs of one seed count once, by their mean ({shown}{more})."


def _seeds(group: Group) -> Cell:
    """How many seeds; a zero-shot model and single published numbers have none."""
    n = len({run.record["seed"] for run in group.runs} - {None})
    return Cell(str(n) if n else "–", {"runs": len(group.runs), "seeds": n})


def _accuracy(group: Group, metric: str) -> Cell:
    values = group.values(metric)
    if not values:
        empty = (metric, *(f"{metric}_{what}" for what in ("std", "min", "max", "sampling")))
        return Cell("–", dict.fromkeys(empty))
    mean, std = mean_std(values)
    text = percent(mean)
    if std is not None and group.published:
        text += f" ({percent(min(values))}–{percent(max(values))})"
    elif std is not None:
        text += f" ± {percent(std)}"
    low_high = {f"{metric}_min": min(values), f"{metric}_max": max(values)}
    numbers: dict[str, float | int | str | None] = {
        metric: mean,
        f"{metric}_std": std,
        **low_high,
        f"{metric}_sampling": sampling(group, metric),
    }
    return Cell(text, numbers, rank=mean)


def sampling(group: Group, place: str) -> float | None:
    """Half the 95% interval that the draw of images leaves to one run: 1.96 √(p (1 − p)/n).

    Of the shifts' mean it follows from the sets'. None where it is not known how many images there were.

    Args:
        place: "id", "ood_avg" or the name of a shift set.
    """
    if place == "ood_avg":
        each = [sampling(group, name) for name in group.record["ood"]]
        known = [error for error in each if error is not None]
        return math.sqrt(sum(error**2 for error in known)) / len(each) if each and len(known) == len(each) else None
    score = group.record["id"] if place == "id" else group.record["ood"].get(place)
    values = group.values(place)
    if score is None or not score["n"] or not values:
        return None
    mean = mean_std(values)[0]
    return 1.96 * math.sqrt(mean * (1 - mean) / score["n"])


def sampling_note(groups: Sequence[Group], sets: Sequence[str]) -> str | None:
    """How far the draw of images alone moves one run of these systems; None where nobody knows."""
    shown = []
    for place in ("id", "ood_avg", *sets):
        errors = [error for group in groups if (error := sampling(group, place)) is not None]
        if errors:
            name = {"id": "ID", "ood_avg": "OOD avg"}.get(place, set_label(place))
            shown.append(f"{name} ± {percent(max(errors))}")
    return f"Sampling error of one run, 95%, at most: {', '.join(shown)}." if shown else None


def _gap(values: Sequence[float], beyond: bool) -> Cell:
    if not values:
        return Cell("–", {"wise_gap": None, "wise_gap_std": None, "wise_gap_beyond": None})
    mean, std = mean_std(values)
    text = signed(mean) + ("" if std is None else f" ± {percent(std)}") + "†" * beyond
    return Cell(text, {"wise_gap": mean, "wise_gap_std": std, "wise_gap_beyond": int(beyond)}, rank=mean)


def _retention(group: Group) -> Cell:
    """What was changed against the zero-shot model, on average over the other tasks."""
    values = group.values("retention")
    if not values:
        return Cell("–", {"retention": None})
    mean, std = mean_std(values)
    text = signed(mean) + ("" if std is None else f" ± {percent(std)}")
    return Cell("–" if group.reference else text, {"retention": mean}, rank=None if group.reference else mean)


def _further(group: Group, key: str, told: Mapping[str, Any]) -> Cell:
    values = group.values(key)
    if not values:
        return Cell("–", dict.fromkeys((key, f"{key}_std")))
    mean, std = mean_std(values)
    text = metric_value(mean, told["unit"]) + ("" if std is None else f" ± {metric_value(std, told['unit'])}")
    better = told["higher_is_better"]
    return Cell(text, {key: mean, f"{key}_std": std}, rank=None if better is None else mean if better else -mean)


def _difference(group: Group, base: Group, name: str, metric: str) -> Cell:
    key = f"{metric}_minus_{re.sub(r'[^a-z0-9]+', '_', name.lower())}"
    found = None if group is base else paired_difference(group.by_seed(metric), base.by_seed(metric))
    if found is None:
        return Cell("–", {key: None, f"{key}_low": None, f"{key}_high": None, f"{key}_p": None, f"{key}_n": 0})
    numbers = {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high, f"{key}_p": found.p}
    text = signed(found.mean)
    if found.low is not None and found.high is not None:
        text += f" [{signed(found.low)}, {signed(found.high)}]"
    return Cell(text, {**numbers, f"{key}_n": found.n})


def _robustness(group: Group, line: LogitLine) -> Cell:
    def robustness(run: Run) -> float | None:
        x, y = run.value("id"), run.value("ood_avg")
        return None if x is None or y is None else effective_robustness(x, y, line)

    values = group.per_seed(robustness)
    if not values:
        return Cell("–", {"effective_robustness": None, "effective_robustness_std": None})
    mean, std = mean_std(values)
    text = signed(mean) + ("" if std is None else f" ± {percent(std)}")
    return Cell(text, {"effective_robustness": mean, "effective_robustness_std": std}, rank=mean)


def print_comparison(console: Console, table: Table) -> None:
    """Print a panel; where the terminal is too narrow, ID, OOD average and differences come before the sets."""
    shown = RichTable(title=f"{escape(table.title)}: top-1 accuracy in %", title_justify="left")
    for k, column in enumerate(table.columns):
        shown.add_column(escape(column), justify="right" if k else "left")
    for row in table.texts("[bold]{}[/bold]", escape):
        shown.add_row(*row)
    summary = [k for k in range(1, len(table.columns)) if k not in table.sets]
    terminal.print_table(console, shown, [part for part in (summary, table.sets) if part])


def markdown(tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    parts = []
    for table in tables:
        head = f"| {' | '.join(table.columns)} |\n|---|{'---:|' * (len(table.columns) - 1)}"
        rows = [f"| {' | '.join(row)} |" for row in table.texts("**{}**", lambda text: text.replace("|", r"\|"))]
        parts.append("\n".join([f"### {table.title}: top-1 accuracy in %", "", head, *rows]))
    return "\n\n".join([*parts, *notes]) + "\n"


def latex(tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    """One booktabs tabular per panel; the notes as comments."""
    parts = [f"% {note}" for note in notes]
    for table in tables:
        rows = [[tex(text) for text in table.columns], *table.texts("\\textbf{{{}}}", tex)]
        lines = [" & ".join(row) + r" \\" for row in rows]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        columns = "l" + "r" * (len(table.columns) - 1)
        parts.append(f"% {table.title}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}")
    return "\n\n".join(parts) + "\n"


def tex(text: str) -> str:
    """`text` with what LaTeX would take for commands, and the letters its default fonts lack, written out."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def csv_text(tables: Sequence[Table]) -> str:
    """Every number behind the tables, as unrounded fractions; a system's fields have columns of their own."""
    rows = [{k: v for cell in row for k, v in cell.numbers.items()} for table in tables for row in table.rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
