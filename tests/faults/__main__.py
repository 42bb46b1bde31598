"""Try every fault there is a part for, or the parts named; status 1 where anything was lost.

python -m tests.faults [PART ...] [--quick] [--seed N] [--out FOLDER]
"""

import argparse
import importlib
import pkgutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import tests.faults
from robustft.common.files import write
from tests.faults.case import Case, Options, table


def parts() -> dict[str, str]:
    """Every part by its name, with the first line of what it says of itself: a module with ``run(options)``."""
    names = [each.name for each in pkgutil.iter_modules(tests.faults.__path__) if each.name.startswith("part_")]
    return {name.removeprefix("part_"): (_module(name).__doc__ or "").splitlines()[0] for name in names}


def _module(name: str):  # noqa: ANN202 -- a module
    return importlib.import_module(f"tests.faults.{name}")


def cases(part: str, options: Options) -> Iterator[Case]:
    """What a part tries, each as soon as it is done."""
    yield from _module(f"part_{part}").run(options)


def main(arguments: Sequence[str]) -> int:
    known = parts()
    described = "\n".join(f"  {name:10} {says}" for name, says in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=f"Try faults on purpose.\n\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="*", metavar="PART", choices=[[], *known], help="all of them, if none is named")
    parser.add_argument("--quick", action="store_true", help="only what takes a minute or two")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--out", type=Path, help="a folder for a table of each part: PART.md")
    typed = parser.parse_args(arguments)
    lost = 0
    for part in typed.part or known:
        print(f"== {part}: {known[part]}", flush=True)
        started, done = time.monotonic(), []
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            for case in cases(part, Options(Path(folder), typed.quick, typed.seed)):
                done.append(case)
                at = f"{time.monotonic() - started:6.0f} s"
                print(f"{at}  {case.name}: {case.survived:,} of {case.tried:,} {case.figure}", flush=True)
                for line in case.lost:
                    print(f"          LOST: {line}", flush=True)
        lost += sum(len(case.lost) for case in done)
        if typed.out is not None and not typed.quick:
            write(typed.out / f"{part}.md", table(done))
    print("nothing lost" if not lost else f"{lost} lost")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
