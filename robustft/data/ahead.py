"""Listing images in a process beside this one, which is busy importing torch: of a million images both take seconds.

What it found is asked for once, with `found`. Where nothing was begun, or it did not get there, who asks looks himself.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from robustft.common import processes, signals
from robustft.data.walk import QUICK_LOOK_S, folders_in, images_below, stamp

STOPS = (signal.SIGINT, signal.SIGTERM)
PIECE = 512  # files that are looked at between two looks at the clock
HICCUP_S = 0.5  # that the others of this machine may cost


@dataclass
class Inside:
    """What class folders hold.

    Attributes:
        names: by class folder, the paths of its images inside of it, sorted.
        stamps: by class folder, size and time of change (ns) of each image as two int64; -1 where it cannot be looked
            at. Of some class folders there are none where looking takes long.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    stamps: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Other:
    """The process that looks.

    Attributes:
        awaited: the places that it will still tell of.
        came: what it told of places that nobody has asked for.
    """

    process: BaseProcess
    connection: Connection
    awaited: list[str]
    came: dict[str, Inside] = field(default_factory=dict)


_others: list[Other] = []


def begin(folders: Sequence[Path]) -> bool:
    """Start to look at folders of class folders, where that gains something: torch is to be imported, and there is a
    second core. A process with threads is not forked.

    Args:
        folders: all of them are to be asked for.

    Returns:
        Whether it was started.
    """
    alone = threading.active_count() == 1 and not multiprocessing.current_process().daemon
    if not folders or "torch" in sys.modules or sys.platform != "linux" or not alone:
        return False
    if len(os.sched_getaffinity(0)) < 2:
        return False
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    places = list(dict.fromkeys(map(_place, folders)))
    process = context.Process(target=_look, args=(here, there, places), daemon=True)
    held_back = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}
    )  # until it has its own answers
    try:
        process.start()
    except OSError:  # no room for another process
        here.close()
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
        there.close()
    _others.append(Other(process, here, places))
    return True


def found(folder: Path) -> Inside:
    """What was found in a folder of class folders, once; nothing where nobody looked."""
    place = _place(folder)
    answer = Inside()
    for other in _others:
        while place in other.awaited:
            try:
                where, inside = other.connection.recv()
            except (EOFError, OSError):  # it has ended before
                other.awaited.clear()
                break
            other.awaited.remove(where)
            other.came[where] = inside
        if not other.awaited:
            other.connection.close()
            other.process.join()
        answer = other.came.pop(place, answer)
    _others[:] = [other for other in _others if other.awaited or other.came]
    return answer


def _place(folder: Path) -> str:
    return str(folder.absolute())  # with its "..", which may stand behind a link


def _look(here: Connection, there: Connection, places: Sequence[str]) -> None:
    """In the other process: everything is left out that it cannot look into."""
    signals.leave_to_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    here.close()  # it is not to wait for itself to read
    processes.end_with_parent()
    with suppress(Exception):  # whoever asks looks himself
        for place in places:
            there.send((place, _inside(place)))


def _inside(place: str) -> Inside:
    inside = Inside()
    with suppress(OSError):
        for name in folders_in(place):
            with suppress(OSError):
                inside.names[name] = sorted(images_below(Path(place, name)))
    looked, began = 0, time.perf_counter()
    for name, paths in inside.names.items():
        stamps = array("q")
        handle = os.open(os.path.join(place, name), os.O_PATH)
        try:
            for start in range(0, len(paths), PIECE):
                for path in paths[start : start + PIECE]:
                    stamps.extend(stamp(path, handle))
                looked += PIECE
                if time.perf_counter() - began > QUICK_LOOK_S * looked + HICCUP_S:  # for many threads, not for one
                    return inside
        finally:
            os.close(handle)
        inside.stamps[name] = stamps.tobytes()
    return inside
