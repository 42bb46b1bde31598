"""Listing images in a process of its own while torch is imported: the same images, once, and nothing left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robustft.data import ahead, walk
from robustft.data.own import listing
from tests.small import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="looks ahead with a second core, on Linux"
)
FILES = ("cat/b.jpg", "cat/a.PNG", "cat/deep/c.jpg", "cat/.hidden.jpg", "cat/notes.txt", "dog/ä ö.webp", "dog/x.jpg")

SAY = """
import json, sys, time
from pathlib import Path
from robustft.data import ahead
{before}
began = ahead.begin([Path(one) for one in sys.argv[1:]])
{between}
told = [ahead.found(Path(one)) for one in sys.argv[1:] for _ in range(2)]
shown = [[one.names, {{k: list(memoryview(v).cast("q")) for k, v in one.stamps.items()}}] for one in told]
print(json.dumps([began, shown]))
"""


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(FILES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff" + b"." * number)
    (tmp_path / "images" / "empty").mkdir()
    (tmp_path / "images" / "cat" / "nowhere.jpg").symlink_to("gone")
    os.fsencode(tmp_path)
    (Path(os.fsdecode(os.fsencode(tmp_path / "images" / "dog") + b"/\xff.jpg"))).write_bytes(b"x")
    return tmp_path / "images"


def told(*folders: Path, before: str = "", between: str = "") -> tuple[bool, list]:
    done = subprocess.run(
        [sys.executable, "-c", SAY.format(before=before, between=between), *map(str, folders)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not done.stderr
    return tuple(json.loads(done.stdout))


def test_what_it_finds_is_what_is_there_and_told_once(folder, tmp_path):
    (tmp_path / "other" / "only").mkdir(parents=True)
    began, (first, again, other, _) = told(folder, tmp_path / "other")
    names, stamps = first
    assert began and again == [{}, {}] and other == [{"only": []}, {"only": []}]
    assert names == {name: sorted(walk.images_below(folder / name)) for name in ("cat", "dog", "empty")}
    assert names["cat"] == ["a.PNG", "b.jpg", "deep/c.jpg", "nowhere.jpg"]
    for name, paths in names.items():
        expected = [ahead.stamp(str(folder / name / path), None) for path in paths]
        assert stamps[name] == [number for pair in expected for number in pair]
    assert stamps["cat"][-2:] == [-1, -1] and min(stamps["dog"]) > 0


@pytest.mark.parametrize(
    ("before", "between"),
    [
        ("import types; sys.modules['torch'] = types.ModuleType('torch')", ""),
        ("import threading; threading.Thread(target=time.sleep, args=(1,)).start()", ""),
        ("import os; os.sched_getaffinity = lambda _: {0}", ""),
    ],
    ids=["torch is there", "threads", "one core"],
)
def test_where_it_gains_nothing_it_is_not_begun(folder, before, between):
    began, answers = told(folder, before=before, between=between)
    assert not began and answers == [[{}, {}], [{}, {}]]


def test_a_process_that_was_killed_has_found_nothing(folder):
    kill = "import multiprocessing, os, signal; os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)"
    stopped = "import signal, os; ahead._look_into = lambda *_: time.sleep(60)"
    began, answers = told(folder, before=stopped, between=kill)
    assert began and answers == [[{}, {}], [{}, {}]]


def test_where_looking_takes_long_nothing_is_said_of_times(folder):
    began, ((names, stamps), _) = told(folder, before="ahead.QUICK_LOOK_S = 0")
    assert began and set(names) == {"cat", "dog", "empty"} and stamps == {}


def test_it_ends_with_the_one_that_began_it(folder):
    code = """
import os, sys, time, multiprocessing
from pathlib import Path
from robustft.data import ahead
ahead.folders_in = lambda place: map(str, range(10**9))
ahead._look_into = lambda *_: time.sleep(0.01)
ahead.begin([Path(sys.argv[1])])
print(multiprocessing.active_children()[0].pid, flush=True)
os.kill(os.getpid(), 9)
"""
    line = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(line, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, timeout=60)
    child = Path("/proc") / done.stdout.decode().strip()
    for _ in range(100):
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("it is still there")


def test_a_scan_takes_what_was_found(folder, monkeypatch):
    alone = listing.scan(folder, "data.train")
    assert alone.stamps is None
    inside = ahead.Inside({"cat": ["b.jpg", "z.jpg"]}, {"cat": np.arange(4).tobytes()})
    monkeypatch.setattr(ahead, "found", lambda _: inside)
    part = listing.scan(folder, "data.train")  # of dog and empty nothing was found
    assert part.names[:2] == ["cat/b.jpg", "cat/z.jpg"] and part.names[2:] == alone.names[4:] and part.stamps is None
    inside.names["dog"], inside.stamps["dog"] = ["q.jpg"], np.array([7, 8]).tobytes()
    whole = listing.scan(folder, "data.train")
    assert whole.names == ["cat/b.jpg", "cat/z.jpg", "dog/q.jpg"]
    assert whole.stamps.tolist() == [[0, 1], [2, 3], [7, 8]]
    assert whole.select([2, 0]).stamps.tolist() == [[7, 8], [0, 1]]
    both = listing.joined([whole, whole], ["b", "a"])
    assert both.stamps.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [7, 8], [7, 8]]
    assert listing.joined([whole, alone], ["b", "a"]).stamps is None


def test_the_order_by_class_is_that_of_a_plain_sort():
    generator = np.random.default_rng(0)
    import torch

    for classes, most in ((9, 50), (70_000, 5)):
        of_each = torch.from_numpy(generator.integers(0, classes, 1000))
        random = generator.integers(0, most, 1000)  # many are equal
        expected = sorted(range(1000), key=lambda i: (int(of_each[i]), random[i], i))
        assert listing._by_class(of_each, random).tolist() == expected
