"""`check=data`: look at every set and every image without training."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from robustft.common import terminal
from robustft.common.errors import UserError
from robustft.data.datamodule import RobustnessData
from robustft.data.folders import ImageFiles, image_paths, whole_of
from robustft.data.prepared import PreparedImages
from robustft.data.reading import damaged_files


def check(datamodule: RobustnessData) -> dict[str, Any]:
    """Inspect, print a table, and return the record of `inspect`.

    Raises:
        UserError: after the table, if a set is missing or wrong, or an image cannot be read.
    """
    record = inspect(datamodule)
    console = terminal.console()
    terminal.print_table(console, _table(record, getattr(datamodule, "root", None)))
    wrong = []
    for name, found in record.items():
        if found["error"]:
            wrong.append(found["error"])
        wrong += [f"{name}: cannot read {path}: {reason}" for path, reason in found["damaged"].items()]
    if wrong:
        raise UserError("\n".join([*dict.fromkeys(wrong), f"{len(set(wrong))} problem(s) found."]))
    console.print("Everything is there and readable.")
    return record


def inspect(datamodule: RobustnessData) -> dict[str, Any]:
    """Per set of the data module, in its order: `path`, `classes`, `images`, `official` (images of the
    published set, None if unknown), `damaged` (path -> reason; every image is decoded, or read in the prepared copy
    that a run would use) and `error` (None if the set is as it should be, its damaged images aside).
    """
    record: dict[str, Any] = {}
    for name, find in datamodule.parts().items():
        found: dict[str, Any] = {"path": None, "classes": 0, "images": 0}
        found |= {"official": datamodule.official_images.get(name), "damaged": {}, "error": None}
        record[name] = found
        try:
            images = find()
        except UserError as error:
            found["error"] = str(error)
            continue
        found |= {"classes": len(images.labels.unique()), "images": len(images)}
        whole = whole_of(images)
        if isinstance(whole, ImageFiles):
            found["path"] = str(whole.root)
            found["damaged"] = damaged_files(image_paths(images), thorough=True, title=f"Decoding {name}")
        elif isinstance(whole, PreparedImages):
            found["path"] = str(whole.folder)
            found["damaged"] = whole.damaged(f"Reading {name}")
    return record


def _table(record: dict[str, Any], root: str | None) -> Table:
    """Set and place share a cell, on two lines: the usual names of folders are long."""
    table = Table(title=escape(f"Data in {root}") if root else "Data", show_lines=True)
    table.add_column("set, found in", overflow="fold")
    for column in ("classes", "images\nof published", "damaged"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in record.items():
        if found["error"]:
            table.add_row(f"{name}\n[red]missing or wrong: see below[/red]")
            continue
        path = Path(found["path"] or "made in memory")
        place = path.relative_to(root) if root and path.is_relative_to(root) else path
        official = found["official"]
        table.add_row(
            f"{name}\n[dim]{escape(str(place))}[/dim]",
            f"{found['classes']:,}",
            f"{found['images']:,}" + (f"\nof {official:,}" if official else ""),
            f"[red]{len(found['damaged'])}[/red]" if found["damaged"] else "0",
        )
    return table
