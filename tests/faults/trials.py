"""Commands that are made to end at a point, and what has to be true of their folders afterwards."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tests.faults.forks import ROOT, Forks

LIMIT_S = 600  # a command takes seconds, on a busy machine minutes: this one hangs
ORPHANS_S = 20  # processes that notice by themselves that their parent is gone look every few seconds
# Differ from time to time: how long it took, how fast it was, whether it went on.
TIMES = {"wall_s", "train_images_per_s", "resume"}


@dataclass(frozen=True)
class Command:
    """What is started, and how.

    Attributes:
        typed: behind ``python run.py``, or a whole command line that begins with a program's path.
        ranks: as many processes as a launcher (torchrun) would start.
        real: by Python from the beginning, not a fork.
        by_rank: further variables of each process.
    """

    typed: tuple[str, ...]
    ranks: int = 1
    real: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    by_rank: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class End:
    """How a command is made to end.

    Attributes:
        at: the point (tests/faults/points.py); None: after ``after_s``.
        to: who gets the signal: self, group or leader.
        pipe: the output goes through ``| cat``.
    """

    number: int
    at: str | None = None
    after_s: float | None = None
    to: str = "self"
    pipe: bool = False

    def __str__(self) -> str:
        where = self.at if self.at is not None else f"after {self.after_s:.2f} s"
        return f"{signal.Signals(self.number).name} {where}{' in a pipe' * self.pipe}"


@dataclass
class Ended:
    """What became of a command."""

    status: int
    said: str
    seconds: float
    orphans: list[str]


Steps = Iterator[None]  # what is done between looks at processes that are at work


class Trials:
    """Runs trials, a few at a time, each a generator that yields while it waits."""

    def __init__(self, folder: Path, together: int = 2) -> None:
        self.folder, self.together, self.forks = folder, together, Forks()
        self.number = 0

    def new_folder(self) -> Path:
        self.number += 1
        folder = self.folder / f"{self.number:04}"
        folder.mkdir()
        return folder

    def run(self, trials: Sequence[Any]) -> list[Any]:
        """What each of the generators returns, in their order."""
        waiting, found = list(enumerate(trials))[::-1], [None] * len(trials)
        running: dict[int, Any] = {}
        while waiting or running:
            while waiting and len(running) < self.together:
                number, trial = waiting.pop()
                running[number] = trial
            for number, trial in list(running.items()):
                try:
                    next(trial)
                except StopIteration as end:
                    found[number] = end.value
                    del running[number]
            time.sleep(0.02)
        return found

    def do(self, command: Command, folder: Path, end: End | None = None, points: Path | None = None) -> Any:
        """A generator: one command from its start to its end, and to the end of all that it has started."""
        out = folder / f".said-{time.monotonic_ns()}"
        environment = {"ROBUSTFT_CACHE": str(folder / "cache"), "POINTS_AT": "", "OMP_NUM_THREADS": "1"}
        environment |= {f"POINTS_RANK_{rank}": json.dumps(dict(own)) for rank, own in enumerate(command.by_rank)}
        environment |= {"POINTS_FILE": str(points or folder / ".points"), **command.environment}
        if end is not None and end.at is not None:
            environment |= {"POINTS_AT": end.at, "POINTS_SIGNAL": str(int(end.number)), "POINTS_TO": end.to}
        started = time.monotonic()
        processes = self._start(command, folder, out, environment, end is not None and end.pipe)
        to_kill = end is not None and end.after_s is not None
        statuses: list[int | None] = [None]
        while None in (statuses := [self._status(process) for process in processes]):
            now = time.monotonic() - started
            if to_kill and now >= end.after_s:
                os.kill(_number(processes[0]), end.number)
                to_kill = False
            others = [_number(p) for p, status in zip(processes, statuses, strict=True) if status is None]
            if now > LIMIT_S:
                for process in others:
                    os.killpg(process, signal.SIGKILL)
            elif any(statuses):  # as torchrun does, when one of its processes has failed
                for process in others:
                    os.kill(process, signal.SIGTERM)
                started_to_end = time.monotonic()
                while None in (statuses := [self._status(process) for process in processes]):
                    if time.monotonic() - started_to_end > 30:
                        for process in others:
                            os.kill(process, signal.SIGKILL)
                    yield
                break
            yield
        seconds = time.monotonic() - started
        groups = [_number(process) for process in processes]
        left = _in_sessions(groups)
        patience = time.monotonic() + ORPHANS_S
        while left and time.monotonic() < patience:
            yield
            left = _in_sessions(groups)
        for process in left:
            os.kill(process, signal.SIGKILL)
        said = out.read_text(errors="replace") if out.exists() else ""
        status = next((status for status in statuses if status), 0)
        return Ended(status, said, seconds, [str(process) for process in left])

    def _start(self, command: Command, folder: Path, out: Path, environment: dict[str, str], pipe: bool) -> list[Any]:
        if command.real:
            return [_start_real(command, folder, out, environment, pipe)]
        if command.ranks == 1:
            return [self.forks.start(list(command.typed), folder, out, environment, pipe)]
        port = str(_free_port())
        shared = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"WORLD_SIZE": str(command.ranks), "LOCAL_WORLD_SIZE": str(command.ranks), "GROUP_RANK": "0"}
        return [
            self.forks.start(
                list(command.typed),
                folder,
                out,
                {**environment, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                pipe,
            )
            for rank in range(command.ranks)
        ]

    def _status(self, process: Any) -> int | None:
        return self.forks.status(process) if isinstance(process, int) else process.poll()

    def close(self) -> None:
        self.forks.close()


def _start_real(
    command: Command, folder: Path, out: Path, environment: dict[str, str], pipe: bool
) -> subprocess.Popen[bytes]:
    stand_in = folder / ".stand_in"
    stand_in.mkdir(exist_ok=True)
    (stand_in / "sitecustomize.py").write_text("from tests.faults import points\n\npoints.install()\n")
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(stand_in), str(ROOT)])}
    line = [sys.executable, *(command.typed if command.typed[0].endswith(".py") else ("run.py", *command.typed))]
    line = [str(ROOT / part) if part == "run.py" else part for part in line]
    shell = '"$@" 2>&1 | cat' if pipe else 'exec "$@" 2>&1'
    with out.open("ab") as file:
        return subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", shell, "bash", *line],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _number(process: Any) -> int:
    return process if isinstance(process, int) else process.pid


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _in_sessions(sessions: Sequence[int]) -> list[int]:
    """The processes of sessions that are still at work."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(after_name[3]) in sessions and after_name[0] != "Z":
                found.append(int(entry.name))
    return found


def points_of(file: Path) -> list[str]:
    """The points that were passed, once each, in their order."""
    return list(dict.fromkeys(line.split("\t")[1] for line in file.read_text().splitlines()))


def content(folder: Path) -> dict[str, Any]:
    """What a command has left to stay, by path: bytes, and results without their times; locks and logs left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.startswith((".run.", ".said-", ".points", ".stand_in")):
            continue
        if path.suffix in (".lock", ".log") or path.name in ("metrics.csv", "last.ckpt", "sitecustomize.py"):
            found[name] = None
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [_without_times(json.loads(line)) for line in lines]
        elif path.name == "config.yaml":
            found[name] = [line for line in path.read_text().splitlines() if not line.startswith("resume:")]
        else:
            found[name] = path.read_bytes()
        if isinstance(found[name], bytes) and path.suffix in (".yaml", ".csv", ".md"):
            found[name] = found[name].replace(str(folder).encode(), b"")
        elif isinstance(found[name], list):
            found[name] = json.dumps(found[name]).replace(str(folder), "")
    return found


def _without_times(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _without_times(value) for key, value in record.items() if key not in TIMES}
    return [_without_times(value) for value in record] if isinstance(record, list) else record


def differences(expected: Mapping[str, Any], found: Mapping[str, Any], may_be_left: Sequence[str] = ()) -> list[str]:
    """What is missing, too much or other."""
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is left" for name in found if name not in expected and Path(name).name not in may_be_left]
    return lines + [f"{name} differs" for name in expected if name in found and expected[name] != found[name]]


def not_whole(folder: Path) -> list[str]:
    """Files under their names that are not what they seem."""
    from PIL import Image

    lost = []
    for path in folder.rglob("*"):
        if any(part.endswith(".partial") for part in path.parts):  # hidden, and nobody takes what is in it for finished
            continue
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "numpy"):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()]
            elif path.suffix == ".gz":
                gzip.decompress(path.read_bytes())
            elif path.suffix == ".ckpt" and not zipfile.is_zipfile(path):
                raise ValueError("cut off")
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
            elif path.suffix in (".yaml",) and not path.read_text().endswith("\n"):
                raise ValueError("cut off")
        except (OSError, ValueError, EOFError, SafetensorError) as error:
            lost.append(f"{path.relative_to(folder)}: {error}")
    return lost
