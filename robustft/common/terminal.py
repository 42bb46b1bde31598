"""Output for people: tables that fit the terminal, in letters that it can show."""

import codecs
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import IO, TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # rich takes a moment to import, and a mistake is answered without it
    from rich.console import Console
    from rich.table import Table

Item = TypeVar("Item")

PLAIN = {"±": "+-", "−": "-", "–": "-", "×": "x", "…": "...", "·": "-", "Δ": "diff", "α": "alpha", "β": "beta"}
PLAIN |= {
    "↑": "(higher is better)",
    "↓": "(lower is better)",
    "→": "->",
    "†": "+",
    "²": "^2",
    "Σ": "sum",
    "“": '"',
    "”": '"',
    "’": "'",
}
SPARE = 24  # columns that the names of rows get, at least, before the other columns are split


def plain(text: str) -> str:
    """Write out what ASCII lacks: "β=3, ±0.1" as "beta=3, +-0.1"."""
    return text if text.isascii() else "".join(map(_ascii, text))


def _ascii(letter: str) -> str:
    if letter.isascii():
        return letter
    return PLAIN.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"


def _write_out(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error("robustft.plain", _write_out)


def use_plain_letters() -> None:
    """Make printing and logging on a terminal without Unicode write letters out instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and not _is_unicode(stream.encoding):
            stream.reconfigure(errors="robustft.plain")


def console(file: IO[str] | StringIO | None = None, stderr: bool = False) -> "Console":
    """Make a console as wide as the terminal; elsewhere as wide as COLUMNS says, or as anything needs (a log file)."""
    from rich.console import Console

    made = Console(file=file, stderr=stderr)
    if made.is_terminal:
        return made
    told = os.environ.get("COLUMNS", "")
    return Console(file=file, stderr=stderr, width=int(told) if told.isdigit() and int(told) else 10_000)


def tracked(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """Go through items with a bar on the terminal, which is gone in the end; elsewhere nothing is printed.

    Args:
        total: how many there are.
    """
    from rich import get_console
    from rich.progress import track

    return track(items, title, total, transient=True, disable=not get_console().is_terminal)


def fits(console: "Console", table: "Table") -> bool:
    """Whether the whole table fits on a line, its headings too."""
    columns = [_Column(table, number, str) for number in range(len(table.columns))]
    return _width([column.wide for column in columns]) <= console.width


def print_table(console: "Console", table: "Table", parts: Sequence[Sequence[int]] | None = None) -> None:
    """Print a table so that nothing of it is cut: as it is where it fits, else in blocks of columns.

    Each block begins with the table's first column; names wrap, numbers never do.

    Args:
        parts: the numbers of the columns, the first one aside, that belong together; a part begins a new block.
            Default: all, in order.
    """
    parts = parts or [range(1, len(table.columns))]
    written = str if _is_unicode(console.encoding) else plain
    shown = [_Column(table, number, written) for number in range(len(table.columns))]
    everything = [number for number in range(1, len(shown))]
    if _width([shown[0].wide, *(shown[number].wide for number in everything)]) <= console.width:
        blocks, widths = [everything], [column.wide for column in shown]
    elif _width([shown[0].wide, *(shown[number].narrow for number in everything)]) <= console.width:
        blocks, widths = [everything], [shown[0].wide, *(column.narrow for column in shown[1:])]
    else:
        widest = max((column.narrow for column in shown[1:]), default=0)
        names = min(shown[0].wide, max(SPARE, console.width * 2 // 5))
        names = max(min(names, console.width - _width([widest]) - 3), 8)
        blocks = [block for part in parts for block in _packed(part, shown, names, console.width)]
        used = max(_width([names, *(shown[number].narrow for number in block)]) for block in blocks)
        names = min(shown[0].wide, names + max(console.width - used, 0))
        widths = [names, *(column.narrow for column in shown[1:])]
    for place, block in enumerate(blocks):
        ends = (place == 0, place == len(blocks) - 1)
        console.print(_block(table, shown, [0, *block], widths, ends, written))


class _Column:
    """What a column shows, the width at which its heading takes one line, and that at which it takes several."""

    def __init__(self, table: "Table", number: int, written: Callable[[str], str]) -> None:
        from rich.text import Text

        column = table.columns[number]
        self.header = written(str(column.header))
        self.cells = [written(cell) if isinstance(cell, str) else cell for cell in column.cells]
        texts = [cell if isinstance(cell, Text) else Text.from_markup(str(cell)) for cell in self.cells]
        longest = max((line.cell_len for text in texts for line in text.split(allow_blank=True)), default=0)
        heading = Text.from_markup(self.header)
        self.wide = max(longest, *(line.cell_len for line in heading.split(allow_blank=True)))
        self.narrow = max(longest, *(len(word) for word in heading.plain.split() or [""]))


def _width(columns: Sequence[int]) -> int:
    return sum(columns) + 3 * len(columns) + 1


def _packed(part: Sequence[int], shown: Sequence[_Column], names: int, width: int) -> list[list[int]]:
    blocks: list[list[int]] = []
    for number in part:
        if blocks and _width([names, *(shown[other].narrow for other in [*blocks[-1], number])]) <= width:
            blocks[-1].append(number)
        else:
            blocks.append([number])
    return blocks


def _block(
    table: "Table",
    shown: Sequence[_Column],
    block: Sequence[int],
    widths: Sequence[int],
    ends: tuple[bool, bool],
    written: Callable[[str], str],
) -> "Table":
    """Those columns of the table; ``ends``: whether this is the first block, which has the title, and the last."""
    from rich.table import Table

    first, last = ends
    part = Table(
        title=written(str(table.title)) if table.title and first else None,
        caption=written(str(table.caption)) if table.caption and last else None,
        title_justify="left",
        caption_justify="left",
        show_lines=table.show_lines,
    )
    for number in block:
        column = table.columns[number]
        part.add_column(
            shown[number].header,
            justify=column.justify,
            style=column.style,
            width=widths[number],
            overflow="fold",
        )
    for row, cells in enumerate(zip(*(shown[number].cells for number in block), strict=True)):
        part.add_row(*cells, end_section=table.rows[row].end_section)
    return part


def print_markdown(console: "Console", text: str) -> None:
    """Print Markdown whose tables fit the terminal; everything else as it is."""
    from rich.markup import escape
    from rich.table import Table

    lines = text.rstrip("\n").split("\n")
    while lines:
        if not lines[0].startswith("|"):
            console.print(lines.pop(0), markup=False, highlight=False)
            continue
        rows = []
        while lines and lines[0].startswith("|"):
            rows.append([escape(cell.strip()) for cell in lines.pop(0).strip().strip("|").split("|")])
        head, rule, *body = rows
        table = Table()
        for title, mark in zip(head, rule, strict=True):
            table.add_column(title, justify="right" if mark.endswith(":") else "left")
        for cells in body:
            table.add_row(*cells)
        print_table(console, table)


def _is_unicode(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").startswith("utf")


class _Signed(logging.Formatter):
    """Begins every line with the name of the run that says it."""

    def __init__(self, name: str) -> None:
        super().__init__("%(message)s")
        self.name = name

    def format(self, record: logging.LogRecord) -> str:
        sign = f"{self.name}: "
        return "\n".join(sign + line.removeprefix(sign) for line in super().format(record).splitlines())


@contextmanager
def signed(name: str) -> Iterator[None]:
    """Sign the lines of a run with its name: runs side by side talk into one terminal."""
    terminals = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    before = [handler.formatter for handler in terminals]
    for handler in terminals:
        handler.setFormatter(_Signed(name))
    try:
        yield
    finally:
        for handler, formatter in zip(terminals, before, strict=True):
            handler.setFormatter(formatter)
