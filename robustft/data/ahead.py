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
from pathlib import Path

from robustft.data.walk import folders_in, images_below

QUICK_LOOK_S = 3e-5  # at a file: by a local disk that has it in memory, many times as quick as across a network


@dataclass
class Inside:
    """What class folders hold.

    Attributes:
        names: by class folder, the paths of its images inside of it, sorted.
        stamps: by class folder, size and time of change (ns) of each image as two int64; -1 where it cannot be looked
            at. Fewer class folders than `names` has, where looking takes long.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    stamps: dict[str, bytes] = field(default_factory=dict)


_begun: dict[str, Connection] = {}  # by folder: where what was found there comes from
_came: dict[str, Inside] = {}  # and what came before somebody asked for it


def begin(folders: Sequence[Path]) -> bool:
    """Start to look at folders of class folders, where that gains something: torch is to be imported, and there is a
    second core. A process with threads is not forked.

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
    places = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
    try:
        context.Process(target=_look, args=(there, places, os.getpid()), daemon=True).start()
    except OSError:  # no room for another process
        return False
    there.close()
    _begun.update(dict.fromkeys(places, here))
    return True


def found(folder: Path) -> Inside:
    """What was found in a folder of class folders, once; nothing where nobody looked."""
    place = os.path.abspath(folder)
    connection = _begun.get(place)
    while connection is not None and place not in _came:
        try:
            where, inside = connection.recv()
        except (EOFError, OSError):  # it has ended before
            break
        _came[where] = inside
    _begun.pop(place, None)
    if connection is not None and connection not in _begun.values():
        connection.close()
        multiprocessing.active_children()  # lets the system forget the one that has ended
    return _came.pop(place, None) or Inside()


def _look(connection: Connection, places: Sequence[str], leader: int) -> None:
    """In the other process: everything is left out that it cannot look into."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the leader
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(BrokenPipeError):
        for place in places:
            inside = Inside()
            with suppress(OSError):
                for name in folders_in(place):
                    if os.getppid() != leader:
                        os._exit(1)
                    _look_into(os.path.join(place, name), name, inside)
            connection.send((place, inside))


def _look_into(folder: str, name: str, inside: Inside) -> None:
    with suppress(OSError):
        names = sorted(images_below(Path(folder)))
        slow = len(inside.stamps) < len(inside.names)
        inside.names[name] = names
        if not slow:
            began = time.perf_counter()
            handle = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY))
            try:
                stamps = array("q")
                for one in names:
                    stamps.extend(stamp(one, handle))
            finally:
                os.close(handle)
            if time.perf_counter() - began < QUICK_LOOK_S * max(len(names), 100):
                inside.stamps[name] = stamps.tobytes()


def stamp(path: str | bytes, folder: int | None) -> tuple[int, int]:
    """Size and time of the last change (ns) of a file; -1 where it cannot be looked at."""
    try:
        status = os.stat(path, dir_fd=folder)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
