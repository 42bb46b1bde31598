"""A table of predictions, written row by row: CSV, JSON lines, Parquet. Whole, or not there."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError, install
from robustft.common.files import atomic
from robustft.common.paths import for_file

COLUMNS = ("path", "rank", "class", "probability")
GROUP = 2**16  # rows of a Parquet file that are written at a time: each group costs room and time to read
Row = tuple[str, int, str, float]
Write = Callable[[Sequence[Row]], None]


def check(path: Path) -> None:
    """Refuse a place or a kind of table that cannot be written.

    Raises:
        UserError: says what can.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UserError(f"--out={path}: expected the name of a table, {', '.join(f'FILE{one}' for one in KINDS)}")
    if kind == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError(f"--out={path}: Parquet is written with pyarrow: {install('parquet')}") from error
    for_file(path, "--out")


@contextmanager
def table(path: Path | None) -> Iterator[Write]:
    """What takes rows and writes them; the file is there once the block ends well. Without a path: CSV for reading.

    Raises:
        WriteError: the disk is full or broken.
    """
    if path is None:
        if hasattr(sys.stdout, "reconfigure") and sys.stdout.encoding.lower().startswith("utf"):
            sys.stdout.reconfigure(errors="surrogateescape")  # a path that is no Unicode comes out as it is
        with _csv(sys.stdout) as write:
            yield write
    else:
        with atomic(path) as partial, KINDS[path.suffix.lower()](partial) as write:
            yield write


@contextmanager
def _csv(file: Any) -> Iterator[Write]:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    yield lambda some: rows.writerows((*start, _digits(probability)) for *start, probability in some)


@contextmanager
def _csv_file(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file, _csv(file) as write:
        yield write


@contextmanager
def _jsonl(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(some: Sequence[Row]) -> None:
            for row in some:
                told = dict(zip(COLUMNS, row, strict=True)) | {"probability": float(_digits(row[3]))}
                file.write(json.dumps(told) + "\n")

        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    types: dict[str, Any] = dict(zip(COLUMNS, (pa.string(), pa.int32(), pa.string(), pa.float32()), strict=True))
    schema = pa.schema(types)
    with ParquetWriter(path, schema) as writer:
        waiting: list[Row] = []

        def write(some: Sequence[Row], least: int = GROUP) -> None:
            waiting.extend((row[0].encode("utf-8", "backslashreplace").decode(), *row[1:]) for row in some)
            if len(waiting) >= least:
                columns = zip(*waiting, strict=True)
                arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types.values(), strict=True)]
                writer.write_table(pa.table(arrays, schema=schema))
                waiting.clear()

        yield write
        write((), least=1)


def _digits(probability: float) -> str:
    return f"{probability:.7g}"  # more than float32 has would be noise


KINDS = {".csv": _csv_file, ".jsonl": _jsonl, ".parquet": _parquet}
