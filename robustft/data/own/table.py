"""`data=table`: a row for every image, with its path, its class, and which set it belongs to."""

import csv
import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError, install
from robustft.common.paths import expand
from robustft.common.wording import counted, noun, some
from robustft.data.own.collection import VAL, Found, OwnImages
from robustft.data.own.listing import Listing, inside_of

TRAIN = "train"
COLUMNS = {name: name for name in ("path", "label", "split", "domain", "group")}
NEEDED = ("path", "label")
UNGROUPED = {key: column for key, column in COLUMNS.items() if key != "group"}


class TableImages(OwnImages):
    """Images that a table lists: CSV, TSV, or Parquet (an extra), with a header.

    Args:
        path: the table.
        root: what the images' paths are relative to; None: the table's folder.
        columns: what the columns are called, of `path`, `label`, `split`, `domain` and `group`. `split` is train, val,
            or the name of a shift; without such a column every image is one to train on. `domain` tells apart images
            of one class and name, and is what data.sampler=domains goes by. `group`: the metric worst_group is the
            accuracy of the group where it is lowest.
        options: of all data of a user's own, see `OwnImages`.
    """

    name = "table"

    def __init__(
        self, *, path: str, root: str | None = None, columns: Mapping[str, str | None] | None = None, **options: Any
    ) -> None:
        super().__init__(root=root, **options)
        self.path = expand(path)
        self.columns = COLUMNS | {key: value for key, value in dict(columns or {}).items() if value is not None}

    def look(self) -> Found:
        header, rows = read_table(self.path)
        for key in self.columns:
            column = self.columns[key]
            if column not in header and (key in NEEDED or column != COLUMNS[key]):
                near = difflib.get_close_matches(column, header, n=1, cutoff=0.4)
                hint = f" Did you mean data.columns.{key}={near[0]}?" if near else ""
                raise UserError(
                    f"{self.path}: no column {column!r}.{hint} It has {some(header, 8)}: data.columns.{key}=NAME"
                )
        root = expand(self.root) if self.root else self.path.parent
        records = records_of(self.path, rows, root, self.columns, "; data.root=DIR takes another folder")
        splits = list(dict.fromkeys(split for split, *_ in records))
        if TRAIN not in splits:
            raise UserError(f"{self.path}: no row belongs to the split {TRAIN}: it has {some(splits, 8)}")
        sets = {split: listing_of(root, [record[1:] for record in records if record[0] == split]) for split in splits}
        shifts = {name: sets[name] for name in splits if name not in (TRAIN, VAL)}
        return Found(sets[TRAIN], sets.get(VAL), shifts)


def records_of(
    table: Path, rows: Sequence[Mapping[str, str]], root: Path, columns: Mapping[str, str], advice: str = ""
) -> list[tuple[str, ...]]:
    """Read (split, path, class, domain, group) of every row.

    Args:
        table: where the rows are from, for messages.
        root: what paths are relative to.
        columns: what the columns are called, as in COLUMNS; without one for groups there are none.
        advice: what else can be done where images are not there.

    Raises:
        UserError: a row lacks something, two have one image, or images are not there.
    """

    def cell(row: Mapping[str, str], key: str) -> str:
        return (row.get(columns[key]) or "").strip() if key in columns else ""

    records: list[tuple[str, ...]] = []
    wrong: list[int] = []
    grouped = any(cell(row, "group") for row in rows)
    for number, row in enumerate(rows, start=2):
        split = cell(row, "split") if columns["split"] in row else TRAIN
        path, label, group = (cell(row, key) for key in ("path", "label", "group"))
        if not path or not label or not split or (grouped and not group):
            wrong.append(number)
        records.append((split, path, label, cell(row, "domain"), group))
    if wrong:
        raise UserError(
            f"{table}: {counted(len(wrong), 'row')} {noun(len(wrong), 'lacks', 'lack')} a path, a label, a split or a"
            f" group ({noun(len(wrong), 'line')} {some(list(map(str, wrong)))})"
        )
    if not records:
        raise UserError(f"{table}: it has a header and no rows")
    twice = [one for one, count in Counter(os.path.normpath(record[1]) for record in records).items() if count > 1]
    if twice:
        raise UserError(
            f"{table}: {counted(len(twice), 'image')} {noun(len(twice), 'has', 'have')} several rows ({some(twice)}):"
            " expected one each"
        )
    missing = [record[1] for record in records if not os.path.isfile(os.path.join(root, expand(record[1])))]
    if missing:
        raise UserError(
            f"{table}: {len(missing):,} of {counted(len(records), 'image')} {noun(len(missing), 'is', 'are')} not"
            f" there ({some(missing)}). Paths are relative to {root}{advice}"
        )
    return records


def listing_of(root: Path, records: Sequence[tuple[str, ...]]) -> Listing:
    """List the images of (path, class, domain, group)."""
    paths, classes, domains, groups = (list(part) for part in zip(*records, strict=True))
    inner = [inside_of(path, label) for path, label in zip(paths, classes, strict=True)]
    several = domains if len(set(domains)) > 1 else []
    return Listing(root, paths, classes, inner, several, groups if any(groups) else []).ordered()


def read_table(path: Path, setting: str = "data.path") -> tuple[list[str], list[dict[str, str]]]:
    """Read the header and the rows of a table, cells as text.

    Args:
        setting: with which it is given, for messages.

    Raises:
        UserError: it cannot be read, or is of another kind.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _read_parquet(path, setting)
    if kind not in (".csv", ".tsv", ".txt"):
        raise UserError(f"{setting}={path}: expected a table in CSV, TSV or Parquet")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            tabs = kind == ".tsv" or first.count("\t") > first.count(",")
            lines = csv.DictReader(
                file, delimiter="\t" if tabs else ";" if first.count(";") > first.count(",") else ","
            )
            lines.fieldnames = names = [name.strip() for name in lines.fieldnames or []]
            return names, list(lines)
    except OSError as error:
        raise UserError(f"{setting}={path}: {error.strerror}. Expected a table in CSV, TSV or Parquet") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{setting}={path}: cannot be read as a table in UTF-8 ({error})") from error


def _read_parquet(path: Path, setting: str) -> tuple[list[str], list[dict[str, str]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table as read
    except ImportError as error:
        raise UserError(f"{setting}={path}: Parquet is read with pyarrow: {install('parquet')}") from error
    try:
        table = read(path)
    except (OSError, ArrowException) as error:
        raise UserError(f"{setting}={path}: cannot be read as Parquet ({' '.join(str(error).split())})") from error
    rows = [{key: "" if cell is None else str(cell) for key, cell in row.items()} for row in table.to_pylist()]
    return list(table.column_names), rows
