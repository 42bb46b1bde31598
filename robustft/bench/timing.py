"""The training step timed: what `robustft bench` does, once its arguments are known to be sound."""

import argparse
import gc
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from robustft.bench.measure import median_seconds, peak_bytes, peak_bytes_apart
from robustft.bench.names import TITLES, VARIANTS
from robustft.bench.steps import Bench
from robustft.common import files, terminal
from robustft.common.allocator import keep_freed
from robustft.common.errors import UserError
from robustft.common.machine import cpu_name
from robustft.common.wording import counted
from robustft.training.trainer import resolve_precision

CAPTION = (
    "× direct fp32: speed against the direct step in float32. Cost in vanilla steps: at the same precision."
    " Share of floor: what the passes that a step cannot do without would cost at the vanilla step's speed,"
    " as a share of what it costs."
)
COLUMNS = ("images_per_s", "vs_vanilla", "forwards", "floor", "floor_share", "timed_share")
OF_METHODS = (
    "A forward is one of the image tower over the batch: a vanilla step is three. Floor: those that a method cannot do"
    " without, the text tower's and the teacher's among them; the text tower's count by their arithmetic, and in the"
    " last column by the time they take. Each was timed in turn with vanilla steps."
)


def measure(options: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON.

    Args:
        options: what `robustft.bench.__main__.parse` made of the command line.

    Raises:
        UserError: no such device, the direct step and ours differ, a variant does not fit into memory.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: PyTorch finds no such device here. Try --device=cpu")
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cpu":
        keep_freed()  # as a training does
    if options.threads:
        torch.set_num_threads(options.threads)
    precision = resolve_precision(options.precision, options.device)
    if options.methods is not None:
        time_methods(options, precision)
        return
    bench = Bench(options.model, options.batch, precision, options.device)
    if options.peak_of:
        print(peak_bytes(bench.step(options.peak_of), options.device))
        return

    kinds = [*VARIANTS, *options.more]
    names = [name + suffix for suffix in ("", "_fp32") for name in kinds]
    measured = [name for name in names if name.endswith("_fp32") or precision != "32-true"]
    with _progress(1 + (options.rounds + 2) * len(measured)) as begin:
        begin("models, and a check that the step here gives what the direct one gives")
        difference = bench.check()
        seconds = median_seconds(
            {name: bench.step(name) for name in measured},
            options.rounds,
            options.device,
            lambda name: begin(f"time: {title(name, precision)}"),
        )
        peaks: dict[str, int | None] = {}
        for name in measured:
            begin(f"memory: {title(name, precision)}")
            peaks[name] = peak_of(name, options, bench)
    if precision == "32-true":  # the default precision and float32 are one
        seconds |= {name: seconds[f"{name}_fp32"] for name in kinds}
        peaks |= {name: peaks[f"{name}_fp32"] for name in kinds}
    record = {
        "model": options.model,
        "batch": options.batch,
        "rounds": options.rounds,
        "precision": precision,
        "machine": machine(options.device),
        "gradient_difference": difference,
        "variants": {name: variant(name, seconds, bench) | {"peak_bytes": peaks[name]} for name in names},
    }
    terminal.print_table(terminal.console(), table(record))
    if options.json:
        files.write(options.json, json.dumps(record, indent=2) + "\n")


def time_methods(options: argparse.Namespace, precision: str) -> None:
    """Time training methods side by side, print the table, write the JSON."""
    from robustft.bench.methods import MethodBench, rows, time_method

    todo = rows(options.methods, options.whole_prompts)
    shared = (options.model, options.batch, precision, options.device)
    found: dict[str, dict[str, float]] = {}
    vanilla = MethodBench("finetune", *shared)
    with _progress(2 * (options.rounds + 1) * len(todo)) as begin:
        for typed, whole in todo:
            method = MethodBench(typed, *shared, whole)
            timed = time_method(method, vanilla, options.rounds, begin, wall=options.clock == "wall")
            found[method.name] = {
                "images_per_s": options.batch / timed.seconds,
                "vs_vanilla": timed.vs_vanilla,
                "forwards": timed.forwards,
                "floor": timed.floor,
                "floor_share": timed.floor_share,
                "floor_as_timed": timed.floor_as_timed,
                "timed_share": timed.timed_share,
            }
            del method
            gc.collect()
    record = {
        "model": options.model,
        "batch": options.batch,
        "rounds": options.rounds,
        "precision": precision,
        "clock": options.clock,
        "machine": machine(options.device),
        "methods": found,
    }
    shown = Table(title=_heading(record), caption=OF_METHODS, caption_justify="left")
    shown.add_column("method")
    for heading in ("images/s", "cost in vanilla steps", "in forwards", "floor", "share of floor", "texts as timed"):
        shown.add_column(heading, justify="right")
    for name, values in found.items():
        shown.add_row(name, *(f"{values[key]:.2f}" for key in COLUMNS))
    terminal.print_table(terminal.console(), shown)
    if options.json:
        files.write(options.json, json.dumps(record, indent=2) + "\n")


def _heading(record: dict[str, Any]) -> str:
    of = record["machine"]
    what = f"{record['model']}, batch {record['batch']}, {of.get('gpu') or of['cpu']}"
    return f"{what}, medians of {counted(record['rounds'], 'round')}"


@contextmanager
def _progress(parts: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, or, where that is no terminal, a line a minute; told when each of ``parts`` begins."""
    console = Console(stderr=True)
    begun, said = 0, -math.inf
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=parts)

        def begin(what: str) -> None:
            nonlocal begun, said
            bar.update(task, completed=begun, description=what)
            if not console.is_terminal and time.monotonic() - said > 60:
                print(f"{begun} of {parts} done, now {what}", file=sys.stderr, flush=True)
                said = time.monotonic()
            begun += 1

        yield begin


def title(name: str, precision: str) -> str:
    """A variant in words, with the precision that it computes in."""
    kind = name.removesuffix("_fp32")
    return f"{TITLES[kind]}, {'32-true' if kind != name else precision}"


def peak_of(name: str, options: argparse.Namespace, bench: Bench) -> int | None:
    """On a CPU in a process of its own, whose memory holds nothing else."""
    if options.device == "cuda":
        return peak_bytes(bench.step(name), "cuda")
    chosen = {key: getattr(options, key) for key in ("model", "batch", "precision", "device", "threads")}
    passed = [f"--{key}={value}" for key, value in chosen.items() if value is not None]
    return peak_bytes_apart([*passed, f"--peak-of={name}"])


def variant(name: str, seconds: dict[str, float], bench: Bench) -> dict[str, float]:
    """Rates and ratios; ``vs_vanilla`` is at equal precision, ``vs_direct`` against the direct step in float32."""
    kind, suffix = name.removesuffix("_fp32"), "_fp32" if name.endswith("_fp32") else ""
    vs_vanilla = seconds[name] / seconds[f"vanilla{suffix}"]
    return {
        "images_per_s": bench.batch / seconds[name],
        "vs_direct": seconds["direct_fp32"] / seconds[name],
        "vs_vanilla": vs_vanilla,
        "floor_share": bench.forwards(kind) / bench.forwards("vanilla") / vs_vanilla,
    }


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    info = {"device": device, "cpu": cpu_name(), "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    info |= {"torch": torch.__version__, "python": platform.python_version(), "load": os.getloadavg()[0]}
    return info | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def table(record: dict[str, Any]) -> Table:
    shown = Table(title=_heading(record), caption=CAPTION, caption_justify="left")
    shown.add_column("step")
    for heading in ("images/s", "× direct fp32", "cost in vanilla steps", "share of floor", "peak memory"):
        shown.add_column(heading, justify="right")
    for name, values in record["variants"].items():
        if record["precision"] == "32-true" and not name.endswith("_fp32"):  # the same once more
            continue
        peak = values["peak_bytes"]
        shown.add_row(
            title(name, record["precision"]),
            f"{values['images_per_s']:.2f}",
            f"{values['vs_direct']:.2f}",
            f"{values['vs_vanilla']:.2f}",
            f"{values['floor_share']:.2f}",
            "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
        )
    return shown
