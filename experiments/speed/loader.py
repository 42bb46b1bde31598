"""Images per second of the training loader: image files, read by torchvision and by robustft, against prepared copies.
In one run, interleaved, medians. Prints a table; --json FILE keeps the numbers.

    python experiments/speed/loader.py DATA_ROOT [--workers 0 2] [--rounds 7] [--json FILE]

Equality is checked before speed: the exact copy must give the very tensors of the image files.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from robustft.common import entry, paths
from robustft.common.errors import UserError
from robustft.data.folders import ImageFolders
from robustft.data.loading import make_loader, usable_cpus
from robustft.data.prepare import prepare
from robustft.data.prepared import open_copy
from robustft.data.sets import ImageSet, Preprocess

NAME = "imagenet_train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=paths.expand, help="folder with ILSVRC2012/train/<class>/")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="loader processes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=paths.expand)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    folder = options.root / "ILSVRC2012/train"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Expected one with a folder of images for every class")
    if options.json:
        paths.for_file(options.json, "--json")
    transform = Compose([Resize(options.size, InterpolationMode.BICUBIC), CenterCrop(options.size), PILToTensor()])
    torchvisions = ImageFolder(str(folder), transform)
    files = ImageFolders(folder, torchvisions.classes, Preprocess(options.size, (0.5,) * 3, (0.5,) * 3))
    with tempfile.TemporaryDirectory() as place:
        prepare({NAME: files}, Path(place), lossy=False)
        prepare({NAME: files}, Path(place), lossy=True)
        exact, jpeg = (open_copy(NAME, files, Path(place), lossy) for lossy in (False, True))
        for i in range(len(files)):
            assert torch.equal(exact[i][0], torchvisions[i][0]) and exact[i][1] == torchvisions[i][1], files.key(i)
        print(f"{len(files):,} images: all tensors of the exact copy are those of torchvision's ImageFolder")
        measured = {
            workers: _measure(torchvisions, {"files": files, "exact": exact, "jpeg": jpeg}, workers, options)
            for workers in options.workers
        }
    record = {
        "machine": {"cpus": usable_cpus(), "cpu": _cpu(), "torch": torch.__version__, "load": os.getloadavg()[0]},
        "images": len(files),
        "batch": options.batch,
        "rounds": options.rounds,
        "images_per_s": measured,
    }
    _print(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def _measure(baseline: ImageFolder, ours: dict[str, ImageSet], workers: int, options) -> dict[str, float]:
    """Medians of passes over all images in one shuffled order, after a first pass that starts the processes."""
    order = torch.randperm(len(baseline), generator=torch.Generator().manual_seed(0)).tolist()
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    loaders: dict[str, DataLoader] = {"ImageFolder": DataLoader(baseline, options.batch, sampler=order, **settings)}
    for name, images in ours.items():
        loaders[name] = make_loader(images, order, options.batch, num_workers=workers, persistent=True)
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for round_ in range(options.rounds + 1):
        for name, loader in loaders.items():
            started = time.perf_counter()
            images = sum(len(batch[1]) for batch in loader)
            if round_:
                speeds[name].append(images / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in speeds.items()}


def _print(record: dict) -> None:
    machine = record["machine"]
    title = f"Loader, images/s (× torchvision's ImageFolder) on {machine['cpus']} CPUs, {machine['cpu']}"
    table = Table(title=title)
    columns = ("loader processes", "ImageFolder", "our files", "prepared, exact", "prepared, JPEG")
    for column in columns:
        table.add_column(column, justify="right")
    for workers, speeds in record["images_per_s"].items():
        cells = [f"{speed:,.0f} ({speed / speeds['ImageFolder']:.1f}×)" for speed in speeds.values()]
        table.add_row(str(workers), *cells)
    Console(width=110).print(table)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if "model name" in line), platform.processor())


if __name__ == "__main__":
    sys.exit(entry.answer(main))
