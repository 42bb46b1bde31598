"""Listing images in a process of its own while torch is imported: the same images, once, and nothing left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustft.data import ahead, walk
from robustft.data.folders import ImageFiles
from robustft.data.own import listing
from robustft.data.sets import Preprocess
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
    began, (first, again, other, _) = told(folder, tmp_path / "other", before="ahead.HICCUP_S = 60")
    names, stamps = first
    assert began and again == [{}, {}] and other == [{"only": []}, {"only": []}]
    assert names == {name: sorted(walk.images_below(folder / name)) for name in ("cat", "dog", "empty")}
    assert names["cat"] == ["a.PNG", "b.jpg", "deep/c.jpg", "nowhere.jpg"]
    for name, paths in names.items():
        expected = [walk.stamp(str(folder / name / path), None) for path in paths]
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
    stopped = "ahead._inside = lambda _: time.sleep(60)"
    began, answers = told(folder, before=stopped, between=kill)
    assert began and answers == [[{}, {}], [{}, {}]]


def test_one_that_fails_has_found_nothing_and_says_nothing(folder):
    began, answers = told(folder, before="ahead._inside = lambda _: 1 / 0")
    assert began and answers == [[{}, {}], [{}, {}]]


def test_where_looking_takes_long_nothing_is_said_of_times(folder):
    began, ((names, stamps), _) = told(folder, before="ahead.QUICK_LOOK_S = ahead.HICCUP_S = 0")
    assert began and set(names) == {"cat", "dog", "empty"} and stamps == {}


def test_a_folder_is_what_its_path_leads_to_link_by_link(folder, tmp_path):
    (tmp_path / "v2" / "images").mkdir(parents=True)
    (tmp_path / "v2" / "train" / "new").mkdir(parents=True)
    (tmp_path / "train" / "old").mkdir(parents=True)
    (tmp_path / "current").symlink_to("v2/images")
    began, ((names, _), _) = told(tmp_path / "current" / ".." / "train")
    assert began and list(names) == ["new"]


@pytest.fixture
def many(tmp_path):
    """More images than a pipe has room for the names of."""
    (tmp_path / "many" / "one").mkdir(parents=True)
    for number in range(4000):
        (tmp_path / "many" / "one" / f"a_rather_long_name_of_an_image_{number}.jpg").touch()
    return tmp_path / "many"


LEFT = r"""
import os

def status(number):
    try:
        return open(f"/proc/{number}/status").read()
    except OSError:
        return ""

left = [number for number in os.listdir("/proc") if number.isdigit() and f"PPid:\t{os.getpid()}\n" in status(number)]
assert not left, left
"""


def test_many_images_come_whole_and_no_process_is_left(many):
    line = [sys.executable, "-c", SAY.format(before="", between="") + LEFT, str(many)]
    done = subprocess.run(line, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    began, ((names, stamps), _) = json.loads(done.stdout)
    assert began and len(names["one"]) == 4000 and len(stamps["one"]) == 8000


@pytest.mark.parametrize("busy", ["listing", "telling"])
@pytest.mark.parametrize("number", [9, 15])
def test_it_ends_with_the_one_that_began_it(many, busy, number):
    code = """
import os, sys, time, multiprocessing
from pathlib import Path
from robustft.data import ahead
if sys.argv[2] == "listing":
    ahead._inside = lambda place: time.sleep(600)
ahead.begin([Path(sys.argv[1])])
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(0.5)
os.kill(os.getpid(), int(sys.argv[3]))
"""
    line = [sys.executable, "-c", code, str(many), busy, str(number)]
    done = subprocess.run(line, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, timeout=60)
    child = Path("/proc") / done.stdout.decode().strip()
    for _ in range(100):
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            return
        time.sleep(0.1)
    os.kill(int(child.name), 9)
    pytest.fail("it is still there")


def test_a_scan_takes_what_was_found(folder, monkeypatch):
    alone = listing.scan(folder, "data.train")
    assert alone.stamps is None
    inside = ahead.Inside({"cat": ["b.jpg", "z.jpg"]}, {"cat": np.arange(4).tobytes()})
    monkeypatch.setattr(ahead, "found", lambda _: inside)
    part = listing.scan(folder, "data.train")  # of dog and empty nothing was found
    assert part.names[:2] == ["cat/b.jpg", "cat/z.jpg"] and part.names[2:] == alone.names[4:]
    assert part.stamps.tolist() == [[0, 1], [2, 3]] + [[walk.UNKNOWN] * 2] * len(part.names[2:])
    transform = Preprocess(8, (0.5,) * 3, (0.5,) * 3)
    files = ImageFiles(folder, part.names, torch.arange(len(part)), transform, stamps=part.stamps)
    told_of = files.stamps(np.arange(len(part)))
    expected = [walk.stamp(str(folder / name), None) for name in part.names[2:]]
    assert told_of.tolist() == [[0, 1], [2, 3], *map(list, expected)]
    inside.names["dog"], inside.stamps["dog"] = ["q.jpg"], np.array([7, 8]).tobytes()
    whole = listing.scan(folder, "data.train")
    assert whole.names == ["cat/b.jpg", "cat/z.jpg", "dog/q.jpg"]
    assert whole.stamps.tolist() == [[0, 1], [2, 3], [7, 8]]
    assert whole.select([2, 0]).stamps.tolist() == [[7, 8], [0, 1]]


@pytest.mark.slow
def test_a_run_finds_the_same_with_and_without(tmp_path):
    """The real command, and all that it lists is asked for."""
    for place in ("train", "val", "shift"):
        for name in ("cat", "dog"):
            for number in range(6):
                path = tmp_path / place / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (number * 9, len(place) * 20, len(name))).save(path)
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "if os.environ.get('ALONE'): os.sched_getaffinity = lambda _: {0}\n"
        "@atexit.register\n"
        "def say():\n"
        "    ahead = sys.modules.get('robustft.data.ahead')\n"
        "    if ahead: print('ahead', ahead._others, file=sys.stderr)\n"
    )
    typed = ["data=folders", "data.train=train", "data.val=val", "data.shifts.odd=shift", "model=tiny"]
    typed += ["model.pretrained=null", "method=zeroshot", "trainer=cpu", "logger=none", "keep_logits=true"]
    scores = []
    for alone in ("", "1"):
        environment = os.environ | {"PYTHONPATH": f"{watched}:{ROOT}", "ALONE": alone}
        line = [sys.executable, str(ROOT / "run.py"), *typed, f"hydra.run.dir=run{alone}"]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "ahead []" in done.stderr, done.stderr
        scores.append((tmp_path / f"run{alone}" / "predictions.csv.gz").read_bytes()[10:])
    assert scores[0] == scores[1]


def test_the_order_by_class_is_that_of_a_plain_sort():
    generator = np.random.default_rng(0)
    for classes, most in ((9, 50), (70_000, 5)):
        of_each = torch.from_numpy(generator.integers(0, classes, 1000))
        random = generator.integers(0, most, 1000)  # many are equal
        expected = sorted(range(1000), key=lambda i: (int(of_each[i]), random[i], i))
        assert listing._by_class(of_each, random).tolist() == expected
