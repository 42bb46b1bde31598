"""A page whose commands are run: those of its ``console`` blocks, in order, in an empty folder.

    python -m tests.walkthrough docs/own-data.md FOLDER     # run them there, and write into the page what they print

Lines that begin with ``$ `` are commands. What follows is a part of what they print, where ``…`` stands for lines that
are left out. A ``python`` block that begins with ``# NAME.py`` is a file of that name. ``<!-- from: PATH -->`` behind a
picture says which file of that folder it shows.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)\n?<!-- from: (\S+) -->")
LEFT_OUT = "…"
NUMBER = re.compile(r"[+−-]?\d+(?:[.,:]\d+)*")
SERVES = re.compile(r"^robustft app ")  # until it is interrupted
SECONDS = 900  # a command may take


@dataclass
class Command:
    """A command, what the page says that it prints, and where in the page that stands."""

    text: str
    said: list[str] = field(default_factory=list)
    first: int = 0


@dataclass
class File:
    name: str
    content: str


def steps(page: str) -> Iterator[Command | File]:
    """What the page does, in its order."""
    for block in BLOCK.finditer(page):
        kind, body = block.groups()
        if kind == "python":
            if named := re.match(r"# (\S+\.py)\n", body):
                yield File(named[1], body)
            continue
        command: Command | None = None
        number = page.count("\n", 0, block.start(2))
        for line in body.splitlines():
            number += 1
            if line.startswith("$ "):
                if command is not None:
                    yield command
                command = Command(line[2:], first=number)
            elif command is not None and command.text.endswith("\\"):
                command.text = command.text[:-1] + line.strip()
                command.first = number
            elif command is not None:
                command.said.append(line)
        if command is not None:
            yield command


def pictures(page: str) -> list[tuple[str, str]]:
    """The page's pictures, and the files they are made of."""
    return PICTURE.findall(page)


def run(command: Command, folder: Path) -> tuple[int, list[str]]:
    """Exit status, and the lines that it prints. A server is interrupted as soon as it has said where it listens."""
    before = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    serves = bool(SERVES.match(command.text))
    process = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", f"exec {command.text}" if serves else command.text],
        cwd=folder, env={**before, "PYTHONUNBUFFERED": "1"}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    if serves:
        for line in process.stdout:
            lines.append(line.rstrip())
            if "http://" in line:
                time.sleep(1)
                process.send_signal(signal.SIGINT)
                break
    rest, _ = process.communicate(timeout=SECONDS)
    lines += [line.rstrip() for line in rest.splitlines()]
    lines = [line.replace(f"{folder}/", "") for line in lines]
    return 0 if serves and process.returncode in (0, 130) else process.returncode, lines


def shape(line: str) -> str:
    """A line without its numbers, its lines of a table and the space they take."""
    return re.sub(r"[\s━─]+", " ", NUMBER.sub("#", line)).strip()


def matched(said: list[str], printed: list[str]) -> list[str | None]:
    """For each line that the page shows, the next printed one of its shape; None where there is none."""
    found: list[str | None] = []
    place = 0
    for line in said:
        if line.strip() in ("", LEFT_OUT):
            found.append(line)
            continue
        places = [k for k in range(place, len(printed)) if shape(printed[k]) == shape(line)]
        found.append(printed[places[0]] if places else None)
        place = places[0] + 1 if places else place
    return found


def main(path: Path, folder: Path) -> int:
    page = path.read_text("utf-8")
    lines, missed = page.splitlines(), 0
    for step in steps(page):
        if isinstance(step, File):
            (folder / step.name).write_text(step.content, "utf-8")
            continue
        started = time.monotonic()
        status, printed = run(step, folder)
        found = matched(step.said, printed)
        print(f"{time.monotonic() - started:6.1f} s  {step.text}")
        if status or None in found:
            missed += 1
            print(*(f"    {line}" for line in printed), f"    exit status {status}; not printed:", sep="\n")
            print(*(f"    {said}" for said, made in zip(step.said, found, strict=True) if made is None), sep="\n")
        for k, made in enumerate(found):
            if made is not None:
                lines[step.first + k] = made
    for shown, source in pictures(page):
        target = path.parent / shown
        target.parent.mkdir(exist_ok=True)
        with Image.open(next(folder.glob(source))) as image:
            image.convert("RGB").save(target, **({"quality": 88} if target.suffix == ".webp" else {}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return missed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
