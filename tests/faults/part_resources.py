"""Full disks, folders that cannot be written, a cache that goes away, no home, long trainings, W&B that fails."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Options
from tests.small import ROOT, do, small

ONE = ("method=finetune", "trainer.max_steps=2")
LONGEST = 900  # seconds of a command on a busy machine
STEPS = 10_000
GROWTH = 0.01


def run(options: Options) -> Iterator[Case]:
    os.environ["ROBUSTFT_CACHE"] = str(options.folder / "cache")
    os.environ.setdefault("WANDB_MODE", "offline")
    yield full_disk(options.folder / "full")
    yield runs_on_small_disks(options.folder / "small", (1, 4) if options.quick else (1, 2, 3, 4, 6, 8, 12))
    yield read_only(options.folder / "read-only")
    yield cache_deleted(options.folder / "deleted")
    yield homeless(options.folder / "homeless", options.quick)
    yield long_training(options.folder / "long", 1_000 if options.quick else STEPS)
    yield wandb(options.folder / "wandb", options.quick)


@contextlib.contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A file system of that size; whether one may be made here."""
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)], capture_output=True
    )
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def skipped(name: str) -> Case:
    return Case(name, 0, figure="skipped: no file system may be mounted here")


# A full disk


def writers() -> dict[str, Callable[[Path], object]]:
    """Everything that writes a file, by what it writes; given the file, or the folder."""
    import numpy as np
    import torch
    from PIL import Image

    from robustft.common.cache import remembered
    from robustft.common.files import save_tensors, write
    from robustft.data.folders import ImageFiles
    from robustft.data.prepare import prepare
    from robustft.data.sets import Preprocess
    from robustft.deploy.tables import table
    from robustft.evaluation.results import write_results
    from robustft.studies import store
    from robustft.training.checkpoints import _Direct

    tensors = {"x": torch.zeros(200_000)}
    rows = [("a.png", 1, os.urandom(100).hex(), 0.5) for _ in range(5_000)]  # which cannot be compressed to nothing

    def predictions(path: Path) -> None:
        with table(path) as add:
            add(rows)

    def copies(path: Path) -> None:
        image = path.parent.with_name("image.png")
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
        files = ImageFiles(image.parent, [image.name] * 64, torch.zeros(64).long(), Preprocess(64, (0,) * 3, (1,) * 3))
        prepare({"train": files}, path)

    return {
        "text": lambda path: write(path, "x" * 10**6),
        "results.json": lambda path: write_results(path, {"x": "y" * 10**6}),
        "results.jsonl": lambda path: store.write(path, {"x": {"y": "z" * 10**6}}),
        "model.safetensors": lambda path: save_tensors(path, tensors, {"a": "b"}),
        "last.ckpt": lambda path: _Direct().save_checkpoint(tensors, path),
        "predictions.csv": predictions,
        "predictions.jsonl": predictions,
        "predictions.parquet": predictions,
        "prepared": copies,
        "cached.safetensors": lambda path: remembered(path, lambda: tensors),
    }


def full_disk(folder: Path) -> Case:
    """Each writer on a disk with no room for what it writes: it says so, and what was there before is still there."""
    from robustft.common.errors import UserError

    name, lost, tried = "a full disk at every kind of write", [], 0
    with disk(folder, 256) as may:
        if not may:
            return skipped(name)
        for what, make in writers().items():
            tried += 1
            file = folder / what
            if what != "prepared":
                file.write_text("before")
            try:
                make(file)
                said = ""
            except UserError as error:
                said = str(error)
            except Exception as error:  # noqa: BLE001 -- what is looked for
                lost.append(f"{what}: {type(error).__name__}: {error}"[:200])
                continue
            optional = what.startswith("cached")  # costs time, never the run
            if optional == bool(said) or "\n" in said or (said and "space" not in said and "free" not in said):
                lost.append(f"{what}: it said {said[:200]!r}")
            if what != "prepared" and file.read_text(errors="replace") != "before":
                lost.append(f"{what}: what was there before is gone")
            left = [
                path.name for path in folder.rglob("*") if path.is_file() and path != file and path.suffix != ".lock"
            ]
            if left:
                lost.append(f"{what}: left {', '.join(left)}")
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Case(name, tried, tuple(lost))


def command(folder: Path, *settings: str, **environment: str | None) -> tuple[subprocess.CompletedProcess[str], float]:
    """``python run.py`` with small settings, and its seconds; an environment's None takes a variable away."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_ERROR_REPORTING": "false", **environment}
    whole: dict[str, str | None] = {**os.environ, **changed}
    known = {key: value for key, value in whole.items() if value is not None}
    started = time.monotonic()
    done = ended([sys.executable, str(ROOT / "run.py"), *small(*settings)], folder, known)
    return done, time.monotonic() - started


def ended(line: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command's end; one that hangs is ended, and its status is −1."""
    how: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    try:
        return subprocess.run(line, cwd=folder, env=environment, timeout=LONGEST, **how)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, -1, "", f"it hangs, {LONGEST} s and more")


def fault(done: subprocess.CompletedProcess[str], run: Path, ends_well: bool | None) -> str | None:
    """What is wrong with how a run ended: well, in one line, or (None) in either of these ways."""
    said = done.stderr + done.stdout
    if "unknown setting" in said:
        raise AssertionError(said)  # a fault of what is tried here
    if "Traceback" in said:
        return f"a traceback: {said.strip().splitlines()[-1][:200]}"
    if done.returncode == 0:
        return None if ends_well is not False and (run / "results.json").is_file() else "no results"
    if ends_well:
        return f"status {done.returncode}: {done.stderr[-200:]}"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if len(errors) != 1:
        return f"{len(errors)} lines of errors: {said[-200:]}"
    return "results of a run that failed" if (run / "results.json").exists() else None


def runs_on_small_disks(folder: Path, sizes: tuple[int, ...]) -> Case:
    """Whole runs whose folder is on a disk of so many half megabytes: each ends well, or in one line."""
    name, lost, longest, ended = "runs on disks that become full on the way", [], 0.0, 0
    for size in sizes:
        with disk(folder / str(size), 512 * size) as may:
            if not may:
                return skipped(name)
            place = folder / str(size) / "run"
            done, seconds = command(folder / "here", *ONE, f"hydra.run.dir={place}")
            longest, ended = max(longest, seconds), ended + (done.returncode == 0)
            if why := fault(done, place, None):
                lost.append(f"{size / 2} MB: {why}")
            if left := [path.name for path in place.rglob("*.partial")]:
                lost.append(f"{size / 2} MB: left {', '.join(left)}")
    return Case(name, len(sizes), tuple(lost), longest, f"{ended} of them had room enough")


# Places that cannot be written, or go away


def read_only(folder: Path) -> Case:
    """A training on images on a read-only disk, with its cache there too."""
    from tests.faults.mutations import images

    name = "data and cache on a read-only disk"
    content, lost = images()["plain.png"], []
    with disk(folder / "disk", 4096) as may:
        if not may:
            return skipped(name)
        for kind in ("cat", "dog"):
            (folder / "disk" / "photos" / kind).mkdir(parents=True)
            for number in range(12):
                (folder / "disk" / "photos" / kind / f"{number}.png").write_bytes(content)
        (folder / "disk" / "cache").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(folder / "disk")], check=True)
        typed = ["data=folders", f"data.train={folder / 'disk' / 'photos'}", "model=tiny", "model.pretrained=null"]
        typed += ["method=finetune", "trainer.max_steps=1", "trainer=cpu", "logger=none", "data.batch_size=4"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBUSTFT_CACHE": str(folder / "disk" / "cache")}
        line = [sys.executable, str(ROOT / "run.py"), *typed, f"hydra.run.dir={folder / 'run'}"]
        done = ended(line, folder, environment)
        if why := fault(done, folder / "run", True):
            lost.append(why)
        elif "cannot keep results in the cache" not in done.stderr + done.stdout:
            lost.append("nothing is said of the cache")
    return Case(name, 1, tuple(lost))


def cache_deleted(folder: Path) -> Case:
    """The cache is deleted again and again while a run is at work."""
    cache, over, times = folder / "cache", threading.Event(), [0]

    def delete() -> None:
        while not over.wait(0.02):
            times[0] += cache.exists()
            shutil.rmtree(cache, ignore_errors=True)

    before, os.environ["ROBUSTFT_CACHE"] = os.environ["ROBUSTFT_CACHE"], str(cache)
    thread = threading.Thread(target=delete, daemon=True)
    thread.start()
    lost = []
    try:
        with contextlib.redirect_stdout(None):
            record = do(folder / "run", *ONE, "model.pretrained=embedded")
        lost += [] if record["id"]["n"] else ["no results"]
    except Exception as error:  # noqa: BLE001 -- what is looked for
        lost.append(f"{type(error).__name__}: {error}"[:200])
    finally:
        over.set()
        thread.join()
        os.environ["ROBUSTFT_CACHE"] = before
    return Case("the cache is deleted while a run is at work", 1, tuple(lost), figure=f"{times[0]} times")


def homeless(folder: Path, quick: bool) -> Case:
    homes: dict[str, str | None] = {"that is not there": "/no/such/home", "that cannot be written": "/proc"}
    homes |= {} if quick else {"that is empty": "", "that is unset": None}
    lost, longest = [], 0.0
    for number, (what, home) in enumerate(homes.items()):
        run = folder / str(number) / "run"
        done, seconds = command(folder / str(number), *ONE, f"hydra.run.dir={run}", HOME=home, ROBUSTFT_CACHE=None)
        longest = max(longest, seconds)
        if why := fault(done, run, True):
            lost.append(f"a home {what}: {why}")
    return Case("no home folder", len(homes), tuple(lost), longest)


# A long training


def long_training(folder: Path, steps: int) -> Case:
    """A head is trained for so many steps through the real trainer; memory and open files from a fifth of it on."""
    from robustft.training.checkpoints import KeepState

    seen: dict[int, tuple[int, int]] = {}
    then = KeepState.on_train_batch_end

    def look(self: Any, trainer: Any, *rest: Any) -> None:
        then(self, trainer, *rest)
        if trainer.global_step % (steps // 10) == 0 and trainer.global_step not in seen:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen[trainer.global_step] = pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    KeepState.on_train_batch_end = look  # type: ignore[method-assign]
    try:
        settings = (*("method=linear_probe", f"trainer.max_steps={steps}", "trainer.max_epochs=100000"),)
        with contextlib.redirect_stdout(None):
            do(folder / "run", *settings, "data.validate=holdout", "trainer.log_every_n_steps=50", "logger=csv")
    finally:
        KeepState.on_train_batch_end = then  # type: ignore[method-assign]
    first, last = steps // 5, max(seen, default=0)
    lost = [] if last >= steps else [f"{last} steps were seen"]
    grown = files = 0.0
    if first in seen:
        grown = seen[last][0] / seen[first][0] - 1
        files = seen[last][1] - seen[first][1]
        lost += [f"memory grew by {grown:.2%}"] if grown > GROWTH else []
        lost += [f"{files:.0f} more open files"] if files > 0 else []
    curve = ", ".join(f"{step:,}: {memory / 2**20:.0f} MB" for step, (memory, _) in sorted(seen.items()))
    return Case(
        f"{steps:,} steps of training", 1, tuple(lost), figure=f"{grown:+.2%} memory, {files:+.0f} files; {curve}"
    )


# W&B


def wandb(folder: Path, quick: bool) -> Case:
    """Servers that refuse, keep silent, or die on the way."""
    import socket

    from tests.wandb_server import Server, silent_server

    lost, longest = [], 0.0

    def attempt(what: str, url: str) -> None:
        nonlocal longest
        run = folder / what / "run"
        typed = [*ONE, "logger=wandb", f"hydra.run.dir={run}"]
        kept = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": None, "HOME": str(folder)}
        done, seconds = command(folder / what, *typed, **kept)
        longest = max(longest, seconds)
        if why := fault(done, run, True):
            lost.append(f"{what}: {why}")

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    attempt("refuses", f"http://127.0.0.1:{port}")
    with silent_server() as url:
        attempt("hangs", url)
    tried = 2
    if not quick:
        server = Server()

        def die() -> None:
            while not server.runs:
                time.sleep(0.05)
            server.die()

        threading.Thread(target=die, daemon=True).start()
        attempt("dies", server.url)
        tried = 3
    return Case("a W&B server that refuses, hangs or dies", tried, tuple(lost), longest)
