"""`python -m robustft.report.dashboard [RUNS ...]`: a W&B workspace that compares ID with OOD over a project's runs.

It is built from what the runs below RUNS have logged, as their local W&B files tell, online or offline. Logged in to
W&B, it is created there; else it is left as JSON, with what to do to create it.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.common import entry, paths, wandb_connection
from robustft.common.errors import UserError, install
from robustft.common.files import write
from robustft.common.wording import counted
from robustft.report.wandb_files import LoggedRun, read_logged

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

STEP = "trainer/global_step"
CURVES = {
    "Loss": "train/loss",
    "Cross-entropy on x": "train/ce",
    "Distance of student and teacher on x_cf": "train/distance",
    "Disagreement of student and teacher on x": "train/disagreement_x",
    "Disagreement of student and teacher on x_cf": "train/disagreement_x_cf",
    "Masked fraction of the patches": "train/masked",
    "Hold-out accuracy": "holdout/top1",
}
MANY = 1000  # runs shown in a panel: all there are


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one message for a mistake of the user."""
    return entry.answer(lambda: dashboard(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=entry.program("dashboard"), description=entry.description(__doc__))
    parser.add_argument(
        "runs", nargs="*", type=paths.expand, default=[Path("runs")], metavar="RUNS", help="folders of runs"
    )
    parser.add_argument("--project", help="W&B project (default: that of the runs)")
    parser.add_argument("--entity", help="W&B user or team (default: that of the runs, else yours)")
    parser.add_argument("--group", help="show one sweep alone (default: it, where all runs are of one)")
    parser.add_argument("--name", help="of the dashboard (default: ID and OOD, with the sweep)")
    parser.add_argument("--dry-run", action="store_true", help="only write the specification")
    parser.add_argument("--out", type=paths.expand, default=Path("dashboard.json"), metavar="FILE", help="where to")
    return parser.parse_args(arguments)


def dashboard(arguments: argparse.Namespace) -> None:
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(f"dashboards need wandb-workspaces: {install('dashboard')}") from error
    paths.for_file(arguments.out, "--out")
    runs = read_logged(arguments.runs)
    project = arguments.project or _project(runs, arguments.runs)
    runs = [run for run in runs if run.project == project]
    groups = {run.group for run in runs}
    group = arguments.group or (groups.pop() if len(groups) == 1 else None)
    runs = [run for run in runs if group in (None, "", run.group)]
    if not runs:
        shown = f"project {project}" + (f", group {group}" if group else "")
        raise UserError(f"no run of {shown} in {', '.join(map(str, arguments.runs))}")
    if not any("ood/avg" in run.summary for run in runs):
        raise UserError(f"of {counted(len(runs), 'run')} none has logged ood/avg: no finished run with a shift set yet")
    entity = arguments.entity or next((run.entity for run in runs if run.entity), "")
    name = arguments.name or " · ".join(["ID and OOD", *filter(None, [group])])
    space = workspace(runs, entity, project, name, group or None)
    spec = space._spec
    panels = sum(len(section.panels) for section in space.sections)
    print(
        f"{counted(len(runs), 'run')} of project {project}: {counted(panels, 'panel')},"
        f" {counted(len(used_keys(spec)), 'logged key')}"
    )
    if arguments.dry_run or wandb_connection.mode(None) != "online":
        write(arguments.out, json.dumps(spec, indent=1) + "\n")
        print(f"Specification: {arguments.out.resolve()}. To create it on W&B:")
        print("  wandb login")
        print(f"  wandb sync $(find {' '.join(map(str, arguments.runs))} -name 'offline-run-*')")
        print("  and this command again")
        return
    print(f"Dashboard: {create(space)}")


def create(space: "Workspace") -> str:
    """Create a dashboard on the W&B server that the user is logged in to; its address.

    Raises:
        UserError: the server did not answer, or refused.
    """
    import wandb

    try:
        space.entity = space.entity or str(wandb.Api().default_entity)
        space.save()
        return space.url
    except Exception as error:  # whatever comes from the network or the server
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UserError(f"W&B did not take the dashboard: {reason[0]}. --dry-run leaves it as a file") from error


def _project(runs: Sequence[LoggedRun], folders: Sequence[Path]) -> str:
    projects = sorted({run.project for run in runs})
    if len(projects) == 1:
        return projects[0]
    where = ", ".join(map(str, folders))
    if not projects:
        raise UserError(f"{where}: no W&B files of runs in there. Runs with logger=wandb, the default, leave them")
    raise UserError(f"{where}: runs of several projects, {', '.join(projects)}. Choose one with --project")


def workspace(runs: Sequence[LoggedRun], entity: str, project: str, name: str, group: str | None = None) -> "Workspace":
    """The dashboard of some runs. A panel stands for what at least one of them has logged."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    accuracies = [key for key in _in_order(runs) if key.startswith("ood/") and key != "ood/avg"]
    settings = ws.RunsetSettings(
        filters=[expr.Metric("Group") == group] if group else [],
        order=[expr.Ordering(expr.Summary("holdout/top1"), ascending=False)],
        pinned_columns=[f"summary:{key}" for key in ("holdout/top1", "id/top1", "ood/avg", *accuracies)],
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(runs, accuracies),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MANY),
        runset_settings=settings,
    )


def _sections(runs: Sequence[LoggedRun], accuracies: Sequence[str]) -> "list[Section]":
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    keys = set(_in_order(runs))
    images = sorted({key for run in runs for key in run.of_type("image-file")})
    tables = sorted({key for run in runs for key in run.of_type("table-file")})

    def scatter(title: str, y: str, **options: Any) -> Any:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric("id/top1"), y=wr.SummaryMetric(y), **options)

    def bars(title: str, key: str) -> Any:
        return wr.BarPlot(title=title, metrics=[key], max_runs_to_show=MANY, max_bars_to_show=MANY)

    trade_off = [scatter("OOD average against ID", "ood/avg", z=wr.Config("beta"), regression=True)]
    trade_off += [bars("ID", "id/top1"), bars("OOD average", "ood/avg")]
    shifts = [bars(_label(key), key) for key in accuracies]
    shifts += [scatter(f"{_label(key)} against ID", key) for key in accuracies]
    metrics: list[Any] = []
    for name in (key.removesuffix("/ood/avg") for key in _in_order(runs) if key.endswith("/ood/avg")):
        x, y = wr.SummaryMetric(f"{name}/id"), wr.SummaryMetric(f"{name}/ood/avg")
        metrics += [wr.ScatterPlot(title=f"{name}: OOD average against ID", x=x, y=y)]
        metrics += [bars(f"{name}: ID", f"{name}/id"), bars(f"{name}: OOD average", f"{name}/ood/avg")]
    curves: list[Any] = [
        wr.LinePlot(title=title, x=STEP, y=[key], max_runs_to_show=MANY) for title, key in CURVES.items() if key in keys
    ]
    gallery: list[Any] = [wr.MediaBrowser(title=_label(key), media_keys=[key], num_columns=1) for key in images]
    per_set: list[Any] = [wr.WeavePanelSummaryTable(table_name=key) for key in tables]
    layout = ws.SectionLayoutSettings(columns=3, rows=2)
    wide = ws.SectionLayoutSettings(columns=1, rows=1)
    sections = [
        ws.Section("ID and OOD", trade_off, is_open=True, pinned=True, layout_settings=layout),
        ws.Section("Shifts", shifts, is_open=True, layout_settings=layout),
        ws.Section("Metrics", metrics, layout_settings=layout),
        ws.Section("Training", curves, is_open=True, layout_settings=layout),
        ws.Section("Gallery", gallery, layout_settings=wide),
        ws.Section("Per set", per_set, layout_settings=wide),
    ]
    return [section for section in sections if section.panels]


def used_keys(spec: Any) -> set[str]:
    """The logged keys that the panels of a specification show; the setting beta is no such key."""
    return set(_used(spec["spec"]["section"]["panelBankConfig"]["sections"]))


def _used(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _used(item)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in ("metrics", "mediaKeys"):
                yield from value
            elif name in ("xAxis", "yAxis", "zAxis") and value != "_step" and not value.startswith("config:"):
                yield value.removeprefix("summary:")
            elif name == "key" and isinstance(value, dict) and "val" in value:  # of a table, in W&B's query language
                yield value["val"]
            else:
                yield from _used(value)


def _in_order(runs: Sequence[LoggedRun]) -> list[str]:
    """Everything that was logged, in the order of the first run that did."""
    return list(dict.fromkeys(key for run in runs for key in [*run.summary, *sorted(run.keys)]))


def _label(key: str) -> str:
    from robustft.evaluation.summary import set_label

    return set_label(key.split("/", 1)[1])


if __name__ == "__main__":
    os.environ.setdefault("WANDB_SILENT", "true")
    sys.exit(main())
