"""``results.jsonl``: the results of a study, one line for each of its runs.

A line is what the run left as results.json, with ``entry``, the run's name in the study, and ``files``, the text of
what else is kept of it, by file name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustft.common import files
from robustft.common.errors import UserError

FILE = "results.jsonl"
Results = dict[str, dict[str, Any]]  # by entry


def read(path: Path) -> Results:
    """Read the results of a study, by entry; none where there is no such file.

    Raises:
        UserError: a line is not what a study leaves.
    """
    results: Results = {}
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text ({error}). Expected the results of this study") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            results[record["entry"]] = record
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {error!r}. Expected a result of this study") from error
    return results


def write(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the results of a study in the order of their names: the file is whole, or as it was before."""
    files.write(path, "".join(f"{json.dumps(results[name])}\n" for name in sorted(results)))
