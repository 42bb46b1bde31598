"""What W&B has been told by runs, read back from the files they leave (run_dir/wandb/*/run-*.wandb).

The files are what `wandb sync` sends: LevelDB's log format, each record one protobuf message. W&B has no reader for
them in Python, and its server is not asked here.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC = b":W&B"
HEADER = 7  # bytes of the file's header, and of that of each piece of a record: checksum, length, kind
BLOCK = 32768  # pieces do not cross multiples of it
WHOLE, FIRST, LAST = 1, 2, 4  # kinds of pieces; 3 is one in the middle


@dataclass
class LoggedRun:
    """One run; what a resumed run wrote before and after is taken together."""

    id: str
    project: str = ""
    entity: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # a dictionary for each call of run.log
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        """Names of everything that was logged."""
        logged = {key for row in self.history for key in row} | set(self.summary)
        return {key for key in logged if not key.startswith("_")}  # the others are W&B's own

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Find logged media, "image-file" or "table-file", by key."""
        found = ((key, value) for row in self.history for key, value in row.items() if isinstance(value, dict))
        return {key: value for key, value in found if value.get("_type") == kind}


def read_logged(folders: Iterable[Path]) -> list[LoggedRun]:
    """Every run below some folders, in the order of their first files; not those killed before anything was written."""
    runs: dict[str, LoggedRun] = {}
    files = {file.resolve() for folder in folders for file in Path(folder).rglob("run-*.wandb")}
    for file in sorted(files, key=lambda path: (path.parent.name, path)):
        _add(runs, file)
    return [run for run in runs.values() if run.project]


def _add(runs: dict[str, LoggedRun], file: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # which protobuf adds

    run_id = file.stem.removeprefix("run-")
    run = runs.setdefault(run_id, LoggedRun(run_id))
    run.files.append(file)
    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        match record.WhichOneof("record_type"):
            case "run":
                told = record.run
                run.project, run.entity, run.name = told.project, told.entity, told.display_name
                run.group, run.job_type, run.tags = told.run_group, told.job_type, list(told.tags)
                run.config |= _items(told.config.update)
            case "config":
                run.config |= _items(record.config.update)
            case "history":
                run.history.append(_items(record.history.item))
            case "summary":
                run.summary |= _items(record.summary.update)
            case "artifact":
                run.artifacts.append(record.artifact.name)
    run.config.pop("_wandb", None)


def _items(items: Iterable[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = values
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return values


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a file; one that was cut off at the end, by a kill, is left out."""
    if content[:4] != MAGIC:
        return
    place, record = HEADER, b""
    while True:
        if BLOCK - place % BLOCK < HEADER:  # no room for another piece in this block
            place += BLOCK - place % BLOCK
        if place + HEADER > len(content):
            return
        _, length, kind = struct.unpack_from("<IHB", content, place)
        piece = content[place + HEADER : place + HEADER + length]
        if kind == 0 or len(piece) < length:
            return
        record = piece if kind in (WHOLE, FIRST) else record + piece
        if kind in (WHOLE, LAST):
            yield record
        place += HEADER + length
