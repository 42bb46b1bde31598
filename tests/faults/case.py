"""What a part tried, and the table of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How much is tried.

    Attributes:
        folder: an empty one, for whatever the part writes; it is deleted afterwards.
        quick: only what takes a minute or two, as in the tests.
        seed: of everything that is drawn.
    """

    folder: Path
    quick: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """A row of the table: one kind of fault.

    Attributes:
        name: what was done, in the words of the table.
        tried: how many times.
        lost: what went wrong in the others, one line for each; empty: all survived.
        longest_s: the longest time that it took to recover or to answer; None: not measured.
        figure: what else was measured ("3.1 KB a step"), in words.
    """

    name: str
    tried: int
    lost: tuple[str, ...] = ()
    longest_s: float | None = None
    figure: str = ""

    @property
    def survived(self) -> int:
        return self.tried - len(self.lost)


def table(cases: Iterable[Case]) -> str:
    """The cases in Markdown."""
    rows = ["| tried | times | survived | lost | longest, s | |", "|---|---:|---:|---:|---:|---|"]
    for case in cases:
        longest = "" if case.longest_s is None else f"{case.longest_s:.1f}"
        what = case.name.replace("|", "\\|")
        rows.append(f"| {what} | {case.tried:,} | {case.survived:,} | {len(case.lost)} | {longest} | {case.figure} |")
    return "\n".join(rows) + "\n"
