"""`check=data`: look at every set and every image without training."""

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from robustft.common import terminal
from robustft.common.cache import cache_folder, digest, optional
from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.common.wording import counted
from robustft.data.check_page import write_page
from robustft.data.datamodule import RobustnessData
from robustft.data.inspection import Looked, inspect, remarks


def check(datamodule: RobustnessData, folder: Path | None = None) -> dict[str, Any]:
    """Inspect, print a table, write a page with what is odd, and return the sets of `inspect`.

    Args:
        folder: where `check.html` goes; None: nowhere.

    Raises:
        UserError: after the table, if a set is missing or wrong, or an image cannot be read.
    """
    looked = inspect(datamodule)
    console = terminal.console()
    terminal.print_table(console, _table(looked.sets, getattr(datamodule, "root", None)))
    for line in remarks(looked):
        console.print(escape(line), soft_wrap=True)
    if folder is not None:
        console.print(escape(f"With pictures: {write_page(folder / 'check.html', looked)}"), soft_wrap=True)
    wrong = []
    for name, found in looked.sets.items():
        if found["error"]:
            wrong.append(found["error"])
        wrong += [f"{name}: cannot read {path}: {reason}" for path, reason in found["damaged"].items()]
    try:
        _ = datamodule.class_names  # two classes of one name
    except UserError as error:
        wrong.append(str(error))
    if wrong:
        raise UserError("\n".join([*dict.fromkeys(wrong), f"{counted(len(set(wrong)), 'problem')} found."]))
    _remember(datamodule, looked)
    console.print("Everything is there and readable.")
    return looked.sets


def known_leaks(datamodule: RobustnessData) -> dict[str, int] | None:
    """Of data that were checked as they are now: images of each evaluation set that are in the training images too.

    Returns:
        None where they were not checked, or have changed since.
    """
    if not (cache_folder() / "checks").is_dir():
        return None  # nothing was ever checked here: no need to look at a million files
    try:
        return json.loads(_record(datamodule).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _remember(datamodule: RobustnessData, looked: Looked) -> None:
    trained = next(iter(datamodule.parts()))
    counts = {name: looked.leaked(name, trained) for name in looked.paths if name != trained}
    if counts and datamodule.eval_images is None:
        with optional(cache_folder() / "checks"):
            write(_record(datamodule), json.dumps(counts) + "\n")


def _record(datamodule: RobustnessData) -> Path:
    datamodule.setup()
    sets = [evaluation_set.fingerprint for evaluation_set in datamodule.sets]
    return cache_folder() / "checks" / f"{digest(datamodule.training_set().identity(), sets)}.json"


def _table(record: dict[str, dict[str, Any]], root: str | None) -> Table:
    """Set and place share a cell, on two lines: the usual names of folders are long."""
    table = Table(title=escape(f"Data in {root}") if root else "Data", show_lines=True)
    table.add_column("set, found in", overflow="fold")
    known = any(found["official"] for found in record.values() if not found["error"])
    for column in ("classes", "images\nof published" if known else "images", "damaged"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in record.items():
        if found["error"]:
            table.add_row(f"{name}\n[red]missing or wrong: see below[/red]")
            continue
        path = Path(found["path"] or "made in memory")
        place = path.relative_to(root) if root and path.is_relative_to(root) else path
        official = found["official"]
        table.add_row(
            escape(name) + (f"\n[dim]{escape(str(place))}[/dim]" if str(place) != "." else ""),
            f"{found['classes']:,}",
            f"{found['images']:,}" + (f"\nof {official:,}" if official else ""),
            f"[red]{len(found['damaged'])}[/red]" if found["damaged"] else "0",
        )
    return table
