"""Attempts in a process that is watched: what crashes, hangs, takes too much memory or runs what a file says is seen.

The process has a limit of its address space, a timer for each attempt, and a hook that hears of programs that are
started. It says what it is about to attempt, so that an attempt that it does not survive has a name; another process
goes on with the rest.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.case import Case

MB = 2**20
# Programs that a file may want to have started; what is heard by these names is refused, and a loss.
STARTS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
Judge = Callable[[], str | None]  # says what is wrong; None: nothing
Attempt = Callable[[str, Judge], None]


@dataclass(frozen=True)
class Limits:
    """What one attempt may take.

    Attributes:
        seconds: of processor time; it may hang for ten times as long, and a minute.
        megabytes: of memory beside what the process had before.
    """

    seconds: float
    megabytes: int


@dataclass
class Found:
    """What came of some attempts.

    Attributes:
        tried: how many.
        lost: what went wrong, a line for each.
        longest_s, most_mb: of an attempt: processor time, and memory beside what the process had before.
    """

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    most_mb: float = 0.0

    def case(self, name: str) -> Case:
        return Case(name, self.tried, tuple(self.lost), self.longest_s, f"at most {self.most_mb:,.0f} MB")


class TooLong(BaseException):
    """The timer of an attempt has run out: no part of the product may take it for an error of its own."""


def watch(
    work: Callable[[Attempt, int, int, Path], None],
    count: int,
    limits: Limits,
    folder: Path,
    seed: int = 0,
    jobs: int = 2,
    warm: Callable[[], None] | None = None,
) -> Found:
    """Make so many attempts in watched processes side by side.

    Args:
        work: given what makes an attempt, a seed, how many attempts to make, and a folder of its own; it is a function
            of a module.
        folder: for those.
        warm: what each process does before its memory is measured: import what all attempts need.
    """
    found = Found()
    shares = [count // jobs + (number < count % jobs) for number in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        parts = [
            pool.submit(_share, work, warm, share, limits, folder / f"job-{number}", 1000 * seed + 100 * number)
            for number, share in enumerate(shares)
            if share
        ]
        for part in parts:
            one = part.result()
            found.tried += one.tried
            found.lost += one.lost
            found.longest_s, found.most_mb = max(found.longest_s, one.longest_s), max(found.most_mb, one.most_mb)
    return found


def watch_each(
    judges: Sequence[tuple[str, Judge]], limits: Limits, folder: Path, warm: Callable[[], None] | None = None
) -> Found:
    """Make these attempts, one after the other, in one watched process; judges are functions of a module, or partial
    ones of such.

    Args:
        warm: what the process does first.
    """
    return watch(partial(_in_turn, judges), len(judges), limits, folder, jobs=1, warm=warm)


def _in_turn(judges: Sequence[tuple[str, Judge]], attempt: Attempt, _seed: int, count: int, _folder: Path) -> None:
    for name, judge in judges[len(judges) - count :]:  # those before were attempted by a process that is no more
        attempt(name, judge)


def _share(work: Any, warm: Any, count: int, limits: Limits, folder: Path, seed: int) -> Found:
    found = Found()
    while found.tried < count:
        before = found.tried
        _one_process(work, warm, count - found.tried, limits, folder, seed + found.tried, found)
        if found.tried == before:
            said = folder.with_suffix(".said").read_text(errors="replace")
            raise RuntimeError(f"the watched process has attempted nothing: {found.lost[-1:]}\n{said[-2000:]}")
    return found


def _one_process(work: Any, warm: Any, count: int, limits: Limits, folder: Path, seed: int, found: Found) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MALLOC_ARENA_MAX"] = "2"  # else each thread of the process reserves addresses that nobody uses
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision.transforms.v2", "lightning.pytorch", "open_clip"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_attempts, args=(theirs, work, warm, count, limits, folder, seed), daemon=True)
    process.start()
    theirs.close()
    at_work, started = None, time.monotonic()
    try:
        while True:
            # An attempt that its own timer cannot end, as it is inside of a library, is ended from here.
            if not ours.poll(120 + 20 * limits.seconds):
                found.tried += at_work is not None
                found.lost.append(f"{at_work}: hangs, {time.monotonic() - started:.0f} s and more")
                return
            match ours.recv():
                case ("begins", name):
                    at_work, started = name, time.monotonic()
                case ("ends", seconds, megabytes, wrong):
                    found.tried += 1
                    found.longest_s, found.most_mb = max(found.longest_s, seconds), max(found.most_mb, megabytes)
                    if seconds > limits.seconds:
                        wrong = wrong or f"took {seconds:.1f} s"
                    elif megabytes > limits.megabytes:
                        wrong = wrong or f"took {megabytes:,.0f} MB"
                    if wrong:
                        found.lost.append(f"{at_work}: {wrong}")
                    if os.environ.get("SHOW"):
                        print(f"{seconds:.1f} s {megabytes:.0f} MB {at_work}: {wrong}", flush=True)
                    at_work = None
                case ("done",):
                    return
    except EOFError:
        process.join(10)
        found.tried += at_work is not None
        found.lost.append(f"{at_work}: the process died ({process.exitcode})")
    finally:
        process.kill()
        process.join()


def _attempts(pipe: Connection, work: Any, warm: Any, count: int, limits: Limits, folder: Path, seed: int) -> None:
    """What the watched process does; what it prints goes to a file beside its folder."""
    said = os.open(folder.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    heard: list[str] = []
    listening = [False]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if listening[0] and event in STARTS:
            heard.append(f"{event}{arguments}"[:200])
            raise RuntimeError(f"{event} is not allowed here")

    sys.addaudithook(hear)
    signal.signal(signal.SIGALRM, _too_long)

    def attempt(name: str, judge: Judge) -> None:
        pipe.send(("begins", name))
        before, started = _memory(), time.process_time()
        _forget_peak()
        signal.setitimer(signal.ITIMER_REAL, 60 + 10 * limits.seconds)
        listening[0] = True
        try:
            wrong = judge()
        except TooLong:
            wrong = f"hangs, {60 + 10 * limits.seconds:.0f} s and more"
        except BaseException as error:  # noqa: BLE001 -- whatever it is, it is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:160]
            wrong = f"{type(error).__name__}: {said} ({Path(place.filename).name}:{place.lineno})"
        finally:
            listening[0] = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if heard:
            wrong = f"ran {heard.pop()}"
        pipe.send(("ends", time.process_time() - started, max(0.0, _peak() - before) / MB, wrong))

    if warm is not None:
        warm()
    # Twice what an attempt may take: above one time it is seen, and above two the machine is protected.
    space = _address_space() + (2 * limits.megabytes + 512) * MB
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    work(attempt, seed, count, folder)
    pipe.send(("done",))


def _too_long(*_: object) -> None:
    raise TooLong


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def _memory() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _address_space() -> int:
    return _status("VmSize")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def each_drawn(strategy: Any, seed: int, count: int, take: Callable[[Any], None]) -> None:
    """Give so many values of a hypothesis strategy to ``take``: the same ones for a seed."""
    import hypothesis

    every = list(hypothesis.HealthCheck)
    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=every,
    )
    hypothesis.seed(seed)(settings(hypothesis.given(strategy)(take)))()
