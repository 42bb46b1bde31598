"""ImageNet's number of images, sweeps of hundreds of runs, reports of thousands: time and memory against size."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Options
from tests.small import ROOT, small

CLASSES, OF_CLASS = 1000, 1281  # ImageNet's training images: 1.28 million
PER_PROCESS_MB = 600  # of a loader's own memory, beside what all of them share
SECOND_START_S = 10  # what is wished for; lost is one that takes longer, and more than half of the first
BEYOND = 1.5  # how much more than in proportion a step of four times the size may take


def run(options: Options) -> Iterator[Case]:
    os.environ["ROBUSTFT_CACHE"] = str(options.folder / "cache")
    each = 20 if options.quick else OF_CLASS
    root = options.folder / "imagenet"
    yield laid_out(root, each)
    for processes, workers in ((1, 8),) if options.quick else ((1, 8), (4, 2)):
        yield loaded(root, each, processes, workers)
    yield begun(root, each, judged=not options.quick)
    yield checked(root, (1_000, 2_000) if options.quick else (5_000, 10_000, 20_000))
    yield swept(options.folder / "sweep", 8 if options.quick else 500)
    yield reported(options.folder / "report", (125, 500) if options.quick else (125, 500, 2_000))


def laid_out(root: Path, each: int) -> Case:
    """Class folders of ImageNet's names with so many names of one small file each."""
    from PIL import Image

    from robustft.data.imagenet import official_classes

    started = time.monotonic()
    for number, wnid in enumerate(official_classes().wnids):
        for split, count in (("train", each), ("val", 1)):
            folder = root / "ILSVRC2012" / split / wnid
            folder.mkdir(parents=True)
            source = folder / f"{wnid}_0.JPEG"
            Image.new("RGB", (16, 16), (number % 256, number // 256, 0)).save(source, "JPEG")
            for one in range(1, count):
                os.link(source, folder / f"{wnid}_{one}.JPEG")
    seconds = time.monotonic() - started
    return Case("laying out ImageNet's folders with hard links", CLASSES * each, (), seconds)


# What is measured in a process of its own. The first argument is the folder, the others are numbers.

LOAD = """
import os, sys, time, json
from pathlib import Path
started = time.monotonic()
from robustft.data.imagenet import official_classes
from robustft.data.folders import ImageFolders
from robustft.data.loading import make_loader
from robustft.data.sets import Preprocess
import torch

def memory(process, key):
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

imported = memory("self", "Rss:")
began = time.monotonic()
images = ImageFolders(Path(sys.argv[1]) / "ILSVRC2012/train", official_classes().wnids,
                      Preprocess(64, (0.5,) * 3, (0.2,) * 3))
scanned = time.monotonic() - began
held = memory("self", "Rss:") - imported
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
batches = iter(make_loader(images, order, 64, num_workers=int(sys.argv[2])))
for _ in range(40):
    next(batches)
children = [int(c) for t in Path("/proc/self/task").iterdir() for c in (t / "children").read_text().split()]
own = [memory(child, "Private_") for child in children]
print(json.dumps({"images": len(images), "scan_s": scanned, "held_mb": held, "workers": len(children),
                  "own_mb": max(own, default=0), "rss_mb": memory("self", "Rss:")}))
"""

CHECK = """
import sys, time, json
from pathlib import Path
from robustft.data.facts import facts_of
from robustft.data.duplicates import leaks
from robustft.data.reading import decoding_error
import imagehash
folder, count = Path(sys.argv[1]) / "ILSVRC2012/train", int(sys.argv[2])
paths = []
for place in sorted(folder.iterdir()):
    paths += [str(path) for path in list(place.iterdir())[: -(-count // 1000)]]
paths = paths[:count]
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
base, started = peak(), time.process_time()
facts = facts_of(paths, decoding_error, "")
leaks({"train": facts, "val": facts[: len(facts) // 10]})
print(json.dumps({"images": len(paths), "cpu_s": time.process_time() - started,
                  "mb": peak() - base}))
"""


def started(code: str, *arguments: Any) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], timeout: float = 600) -> dict[str, Any]:
    said, errors = process.communicate(timeout=timeout)
    if process.returncode:
        return {"error": errors.strip().splitlines()[-1:] or process.returncode}
    return json.loads(said.strip().splitlines()[-1])


def loaded(root: Path, each: int, processes: int, workers: int) -> Case:
    """Processes of a run that scan the images and load them, each with so many loader processes."""
    name = f"{CLASSES * each:,} images, {processes} process(es) with {workers} loader processes each"
    answers = [told(one) for one in [started(LOAD, root, workers) for _ in range(processes)]]
    lost = [str(answer["error"]) for answer in answers if "error" in answer]
    good = [answer for answer in answers if "error" not in answer]
    if not good:
        return Case(name, processes, tuple(lost))
    lost += [f"{a['images']:,} images were found" for a in good if a["images"] != CLASSES * each]
    lost += [f"{a['workers']} loader processes" for a in good if a["workers"] != workers]
    own, held = max(a["own_mb"] for a in good), max(a["held_mb"] for a in good)
    lost += [f"a loader process has {own:.0f} MB of its own"] if own > PER_PROCESS_MB else []
    figure = f"the list takes {held:.0f} MB in a process; a loader process has {own:.0f} MB of its own"
    return Case(name, processes, tuple(lost), max(a["scan_s"] for a in good), f"{figure}; longest: the scan")


# In sitecustomize: after how many seconds a command takes its first step, and what memory (MB) it had in use at most,
# with the largest process that it has started and that has ended. Torch is imported when the command does, not before.
FIRST_STEP = """
import sys, time
STARTED = time.monotonic()

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "robustft.training.loop":
            sys.meta_path.remove(self)
            watch()

def watch():
    import torch
    original = torch.optim.AdamW.step

    def step(self, closure=None):
        import pathlib, resource
        who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN  # the one that lists images is no more
        most = sum(resource.getrusage(one).ru_maxrss for one in who) / 1024
        pathlib.Path("first_step").write_text(f"{time.monotonic() - STARTED} {most}")
        torch.optim.AdamW.step = original
        return original(self, closure)

    torch.optim.AdamW.step = step

sys.meta_path.insert(0, Watch())
"""


def begun(root: Path, each: int, judged: bool) -> Case:
    """The real command, up to its first step, twice: images that are known to be good are not read again.

    Args:
        judged: whether the second start may be called too long: of few images most of it are imports, on any machine.
    """
    name, lost, seconds, memory = f"a training on {CLASSES * each:,} images of one's own, to its first step", [], [], []
    folder = root.parent / "begun"
    (folder / "stand_in").mkdir(parents=True)
    (folder / "stand_in" / "sitecustomize.py").write_text(FIRST_STEP)
    typed = ["data=folders", f"data.train={root / 'ILSVRC2012' / 'train'}", "data.eval_images=8", "data.batch_size=8"]
    typed += ["model=tiny", "model.pretrained=null", "trainer=cpu", "trainer.max_steps=1", "logger=none"]
    path = os.pathsep.join([str(folder / "stand_in"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for number in range(2):
        line = [sys.executable, str(ROOT / "run.py"), *typed, f"hydra.run.dir={number}"]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            return Case(name, 2, (f"status {done.returncode}: {done.stderr[-300:]}",))
        took, most = map(float, (folder / "first_step").read_text().split())
        seconds.append(took)
        memory.append(most)
    if judged and seconds[1] > max(SECOND_START_S, 0.5 * seconds[0]):
        lost.append(f"the second start took {seconds[1]:.1f} s")
    return Case(name, 2, tuple(lost), seconds[0], f"the second start: {seconds[1]:.1f} s; {max(memory):,.0f} MB")


def checked(root: Path, counts: Sequence[int]) -> Case:
    """``check=data``: what it does with every image, on more and more of them."""
    answers = [told(started(CHECK, root, count)) for count in counts]
    return _line("check=data, image by image", counts, answers, "cpu_s", "images")


def swept(folder: Path, count: int) -> Case:
    """A sweep of so many runs, by one command, and once more when all are finished."""
    folder.mkdir()
    name, lost, times = f"a sweep of {count} runs", [], []
    typed = [one for one in small("method=zeroshot") if not one.startswith("trainer.enable")]
    line = [sys.executable, str(ROOT / "run.py"), "-m", *typed, f"seed=range({count})", "sweep=many"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        began = time.monotonic()
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
        times.append(time.monotonic() - began)
        if done.returncode:
            lost.append(f"status {done.returncode}: {done.stderr[-200:]}")
    found = len(list(folder.glob("runs/sweeps/many/*/results.json")))
    if found != count:
        return Case(name, count, (*lost, f"{found} results"), times[0])
    first = sorted(folder.glob("runs/sweeps/many/*/results.json"), key=lambda path: path.stat().st_mtime)
    stamps = [path.stat().st_mtime for path in first]
    tenth = max(1, count // 10)
    early, late = stamps[2 * tenth] - stamps[tenth], stamps[-1] - stamps[-1 - tenth]
    if count >= 100 and late > 2 * early + 5:
        lost.append(f"the last tenth took {late:.0f} s, the second {early:.0f} s")
    figure = f"{times[0] / count:.1f} s a run; the same command again, all finished: {times[1]:.0f} s"
    return Case(name, count, tuple(lost), times[0], figure)


REPORT = """
import sys, time, json, io, contextlib
from robustft.report.__main__ import main
started = time.process_time()
with contextlib.redirect_stdout(io.StringIO()):
    assert main([sys.argv[1], "--html", sys.argv[1] + "/page.html"]) == 0
from pathlib import Path
print(json.dumps({"cpu_s": time.process_time() - started,
                  "mb": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024,
                  "page_kb": Path(sys.argv[1], "page.html").stat().st_size / 1024}))
"""


def reported(folder: Path, counts: Sequence[int]) -> Case:
    """Tables and page of so many runs: systems of five seeds each."""
    answers = []
    whole = _record(folder / "one")
    for count in counts:
        place = folder / str(count)
        for number in range(count):
            beta, seed = 0.1 * (number // 5), number % 5
            config = {**whole["config"], "seed": seed, "beta": beta}
            record = {**whole, "seed": seed, "beta": beta, "name": f"run-{number}", "config": config}
            record["id"] = {**whole["id"], "top1": number % 97 / 97}
            (place / str(number)).mkdir(parents=True)
            (place / str(number) / "results.json").write_text(json.dumps(record))
        answers.append(told(started(REPORT, place)))
    return _line("tables and page of runs", counts, answers, "cpu_s", "runs")


def _record(folder: Path) -> dict[str, Any]:
    import contextlib

    from tests.small import do

    with contextlib.redirect_stdout(None):
        return do(folder, "method=kd", "trainer.max_steps=1")


def _line(name: str, counts: Sequence[int], answers: Sequence[dict[str, Any]], key: str, what: str) -> Case:
    """Whether time grows in proportion to the size, or less."""
    lost = [str(answer["error"]) for answer in answers if "error" in answer]
    if not lost:
        first, last = answers[0][key], answers[-1][key]
        if last > BEYOND * first * counts[-1] / counts[0]:
            lost.append(f"{first:.1f} s for {counts[0]:,}, {last:.1f} s for {counts[-1]:,}: more than in proportion")
    shown = [
        f"{count:,}: {answer[key]:.1f} s, {answer['mb']:.0f} MB"
        + (f", {answer['page_kb'] / 1024:.1f} MB page" if "page_kb" in answer else "")
        for count, answer in zip(counts, answers, strict=True)
        if "error" not in answer
    ]
    longest = max((answer[key] for answer in answers if "error" not in answer), default=None)
    return Case(f"{name}, up to {counts[-1]:,} {what}", len(counts), tuple(lost), longest, "; ".join(shown))
