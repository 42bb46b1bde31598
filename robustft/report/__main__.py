"""`python -m robustft.report RUNS...`: compare runs in tables, a scatter plot and a page."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from robustft.common import entry, paths, terminal
from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.common.wording import counted, noun
from robustft.report import paired, published, wise
from robustft.report.groups import Group, group_over_seeds, panel_title, reading_order
from robustft.report.runs import Run, comparable_averages, read_runs, refuse_mixed, retention_tasks, zeroshot_runs
from robustft.report.stats import LogitLine, logit_fit
from robustft.report.table import (
    Table,
    comparison,
    csv_text,
    find_baseline,
    latex,
    markdown,
    print_comparison,
    repeated_note,
    sampling_note,
)

SEEDS = "Mean ± standard deviation over seeds."
RANGE = "Members: mean (lowest–highest)."
KNOWS = "knows: top-1 on other tasks by their prompts; Δ knows: mean change against zero-shot, in points."
TRANSDUCTIVE = "Transductive systems have looked at the whole unlabelled test sets: they stand apart."
RECIPES = "Runs by other recipes stand in tables of their own: recipes differ as much as methods do."
PAIRED = "Differences in points, paired by seed, with 95% t intervals."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=entry.program("report"), description=entry.description(__doc__))
    parser.add_argument(
        "runs", nargs="+", metavar="RUNS", help="results.json or .jsonl, folders of runs, globs, published .jsonl"
    )
    parser.add_argument("--out", type=paths.expand, metavar="DIR", help="where tables and plots go (default: report)")
    parser.add_argument(
        "--html", type=paths.expand, metavar="FILE", help="write the interactive page (alone, without --out)"
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help='paired differences to this system: "vanilla", a method, a label or a run\'s name (repeatable)',
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        default=[],
        metavar="RUNS",
        help="models of the line for effective robustness",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a column and a plot of another metric than top-1, as results hold it: ece, nll ... (repeatable)",
    )
    parser.add_argument(
        "--paired", action="store_true", help="differences to --baseline image by image too, from predictions"
    )
    parser.add_argument(
        "--published", type=paths.expand, metavar="FILE", help="a CSV of published numbers, to put beside these"
    )
    parser.add_argument("--partial", action="store_true", help="include evaluations that were cut short")
    parser.add_argument("--all", action="store_true", help="a row for every run, not only for every system")
    return parser.parse_args(arguments)


def baseline_line(patterns: Sequence[str], partial: bool, runs: Sequence[Run]) -> LogitLine | None:
    """The line through the baseline models with a shift average, or None where none are named.

    Args:
        runs: what is shown beside the line.

    Raises:
        UserError: the baselines were measured on other pictures than ``runs``.
    """
    if not patterns:
        return None
    baselines = read_runs(patterns, partial)
    refuse_mixed([*runs, *baselines])
    known = [point for group in group_over_seeds(baselines) for point in group.points()]
    return logit_fit([x for x, _ in known], [y for _, y in known])


def metrics_of(runs: Sequence[Run], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What results say of the metrics that are asked for.

    Raises:
        UserError: no run has one of them.
    """
    known: dict[str, dict[str, Any]] = {}
    for run in runs:
        known |= run.record.get("metrics") or {}
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known)) or "none beside top-1: they are older, or were run with metric=top1"
            raise UserError(f"--metric {name}: no run has it. There are {there}.")
    return {name: known[name] for name in names}


def panels_of(runs: Sequence[Run]) -> list[list[Group]]:
    """Groups by model, ID set and recipe, in a reader's order; the zero-shot model is in the panels of all recipes."""
    groups = group_over_seeds([*zeroshot_runs(runs), *runs])
    recipes: dict[tuple[str, str], set[str | None]] = {}
    for group in groups:
        if not group.reference:
            recipes.setdefault(group.runs[0].panel, set()).add(group.recipe)
    panels: dict[tuple[str, str, str], list[Group]] = {}
    for group in sorted(groups, key=reading_order):
        panel = group.runs[0].panel
        found = recipes.get(panel, {None}) if group.reference else {group.recipe}
        for recipe in sorted(name or "" for name in found):
            panels.setdefault((*panel, recipe), []).append(Group(group.label, group.runs))
    return list(panels.values())


def compare(runs: Sequence[Run], arguments: argparse.Namespace, console: Console) -> None:
    """Print the tables of some runs, and write what the options ask for.

    Args:
        arguments: as `parse` reads them; where runs lie is not looked at.

    Raises:
        UserError: no system fits a baseline, no run has a metric, or a place cannot be written to.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    runs = comparable_averages(runs)
    out = arguments.out or (None if arguments.html else Path("report"))
    if arguments.html:
        paths.for_file(arguments.html, "--html")
    if out:
        paths.make_folder(out, "--out")
    if arguments.paired and not arguments.baseline:
        raise UserError("--paired: say what the others are compared with, --baseline NAME")
    line = baseline_line(arguments.baselines, arguments.partial, runs)
    panels = panels_of(runs)
    everything = [group for groups in panels for group in groups]
    for name in arguments.baseline:
        if not any(find_baseline(groups, name) for groups in panels):
            known = ", ".join(f'"{group.label}"' for group in everything[:8])
            raise UserError(
                f"No system fits the baseline {name}. There are {known}{' …' if len(everything) > 8 else ''}."
            )
    more = metrics_of(runs, arguments.metric)
    tables, texts, errors = [], [], []
    for groups in panels:
        names = dict.fromkeys(name for group in groups for run in group.runs for name in run.record["ood"])
        found = {name: find_baseline(groups, name) for name in arguments.baseline}
        short = {name: published.SEED.sub("", name) for name in found}
        heads = [short[name] for name in found]
        baselines = [
            (short[name] if heads.count(short[name]) == 1 else name, base)
            for name, base in found.items()
            if base is not None
        ]
        tasks = retention_tasks(run for group in groups for run in group.runs)
        by_seed = wise.curves(groups)
        for apart in (False, True):
            rows = [
                row
                for group in groups
                if group.transductive == apart
                for row in (_with_members(group) if arguments.all else [group])
            ]
            if rows:
                gaps = {row.label: wise.gaps(row, by_seed) for row in rows} if by_seed else None
                tables.append(comparison(rows, list(names), baselines, line, more, tasks, gaps))
                print_comparison(console, tables[-1])
        if note := sampling_note(groups, list(names)):
            errors.append(note if len(panels) == 1 else f"{panel_title(groups)}: {note[0].lower()}{note[1:]}")
        if arguments.paired:
            texts += [paired.markdown(groups, base, panel_title(groups)) for _, base in baselines]
    if arguments.published:
        texts.append(_beside(runs, arguments.published))
    for text in texts:
        terminal.print_markdown(console, text)
    notes = [SEEDS] if any(len(group.runs) > 1 and not group.published for group in everything) else []
    notes += [RANGE] if any(len(group.runs) > 1 and group.published for group in everything) else []
    notes += errors
    notes += [PAIRED] if arguments.baseline else []
    notes += [paired.NOTE] if arguments.paired else []
    notes += [wise.NOTE] if any("gap to WiSE" in table.columns for table in tables) else []
    notes += [RECIPES] if len({group.recipe for group in everything if not group.reference}) > 1 else []
    notes += [KNOWS] if retention_tasks(run for group in everything for run in group.runs) else []
    notes += [TRANSDUCTIVE] if any(group.transductive for group in everything) else []
    notes += [note] if (note := repeated_note(everything)) else []
    if cut_short := sum(run.record["partial"] for run in runs):
        notes.append(
            f"{cut_short} of {counted(len(runs), 'run')}"
            f" {noun(cut_short, 'is a partial evaluation', 'are partial evaluations')}."
        )
    for note in notes:
        say(note)
    if arguments.html:
        from robustft.report.page import write_page

        say(f"Page: {write_page(arguments.html, panels)}")
    if out:
        say(f"Written to {out}: {', '.join(_write(out, tables, [*texts, *notes], panels, line, more))}")


def _beside(runs: Sequence[Run], file: Path) -> str:
    """Published numbers beside those of runs, which are called as a study does or after their folder.

    Raises:
        UserError: the file is not there or cannot be read, or nothing in it was run.
    """
    named: dict[str, Run] = {}
    for number, run in enumerate(runs):
        record = run.record
        name = record.get("entry") or record["name"].removesuffix(f"_{record['model']}")
        system = published.SEED.sub("", name)
        named[f"{'vanilla' if system == 'finetune' else system}_seed-{number}"] = run
    known = published.read(file)
    text = published.beside({name: run.record for name, run in named.items()}, known)
    if text is None:
        systems = ", ".join(dict.fromkeys(published.SEED.sub("", name) for name in named))
        raise UserError(f"--published {file}: none of its systems is among the runs on ImageNet. Here are {systems}")
    return text


def _write(
    out: Path,
    tables: Sequence[Table],
    notes: Sequence[str],
    panels: Sequence[Sequence[Group]],
    line: LogitLine | None,
    more: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """The tables and plots; what they are called."""
    from robustft.report.plot import scatter

    texts = {"md": markdown(tables, notes), "csv": csv_text(tables), "tex": latex(tables, notes)}
    for suffix, text in texts.items():
        write(out / f"comparison.{suffix}", text)
    drawable = [groups for groups in panels if any(group.points() for group in groups)]
    plots = scatter(drawable, out / "scatter", line) if drawable else []
    for name in more:
        drawable = [groups for groups in panels if any(g.points(f"id.{name}", f"ood_avg.{name}") for g in groups)]
        plots += scatter(drawable, out / f"scatter_{name}", metric=name) if drawable else []
    return ["comparison.md", ".csv", ".tex", *(plot.name for plot in plots)]


def _with_members(group: Group) -> list[Group]:
    """The group's row, then one for each of its runs."""
    if len(group.runs) == 1:
        return [group]
    seeds = [run.record["seed"] for run in group.runs]
    names = [
        run.record["name"] if group.published else f"seed {seed}" + f", {run.record['name']}" * (seeds.count(seed) > 1)
        for run, seed in zip(group.runs, seeds, strict=True)
    ]
    return [group, *(Group(f"· {name}", [run]) for name, run in zip(names, group.runs, strict=True))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one message for a mistake of the user."""

    def answer() -> None:
        options = parse(arguments)
        compare(read_runs(options.runs, options.partial), options, terminal.console())

    return entry.answer(answer)


if __name__ == "__main__":
    sys.exit(main())
