"""`robustft predict RUN IMAGE_OR_FOLDER...`: what images show, by the model that a run left.

Prints, or writes with --out, a row for each of the most probable classes of each image: path, rank, class, probability.
Folders are looked through for images; images come in the order given, those of a folder by path. Files that cannot be
read are listed at the end, and the exit status is 1.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from robustft.common import entry, homes, machine, paths
from robustft.common.errors import UserError
from robustft.common.wording import counted, first_line
from robustft.deploy import images, tables
from robustft.deploy.source import CONFIG_DIR, Source, find

if TYPE_CHECKING:
    from robustft.deploy.model import Model

BATCH = 64
MANY = 1000  # images for which starting loader processes pays off on a CPU


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where files could not be read, or with one message for a mistake of the user."""
    return entry.answer(lambda: predict(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=entry.program("predict"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its model.safetensors")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files, and folders of them")
    parser.add_argument("--out", type=paths.expand, metavar="FILE", help="FILE.csv, .jsonl or .parquet")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to name for each image (default: 5)")
    parser.add_argument("--raw", action="store_true", help="probabilities as trained, without the temperature")
    parser.add_argument("--zero-shot", action="store_true", help="by the model that the run started from")
    parser.add_argument(
        "--features", type=paths.expand, metavar="FILE.npy", help="write each image's features, of length 1, too"
    )
    parser.add_argument("--batch-size", type=int, default=BATCH, metavar="N", help=f"at a time (default: {BATCH})")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: by the machine)")
    parser.add_argument("--config-dir", metavar="DIR", help=CONFIG_DIR)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the GPU, if there)")
    return parser.parse_args(arguments)


def predict(arguments: argparse.Namespace) -> int:
    """Name what the images show; the exit status.

    Raises:
        UserError: an argument that cannot be; nothing is written.
    """
    source, found = check(arguments), images.listed(arguments.images)
    homes.stand_in()
    from robustft.deploy.model import load  # torch and open_clip take seconds to import

    model = load(source)
    if arguments.zero_shot:
        from robustft.deploy.again import zeroshot_of

        model = zeroshot_of(source, model.class_names)
    if model.temperature is None and not arguments.raw:
        print("no temperature was fitted on a hold-out: probabilities are raw", file=sys.stderr)
    with ExitStack() as stack:
        write = stack.enter_context(tables.table(arguments.out))
        unreadable = run(model, found, write, arguments)
    for path, why in unreadable.items():
        print(f"{path}: {why}", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable):,} of {counted(len(found), 'image')} could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def check(arguments: argparse.Namespace) -> Source:
    """Refuse what can be seen to be wrong before anything is computed; the run's source.

    Raises:
        UserError: names the argument.
    """
    for name, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}={value}: expected a whole number, {least} or more")
    source = find(arguments.run, arguments.config_dir)
    source.described  # noqa: B018 -- refused now, if it is no model of ours
    if arguments.zero_shot:
        source.require_config()
    machine.refuse_device(arguments.device)
    if arguments.out is not None:
        tables.check(arguments.out)
    if arguments.features is not None:
        if arguments.features.suffix != ".npy":
            raise UserError(f"--features={arguments.features}: expected the name of a NumPy file, FILE.npy")
        paths.for_file(arguments.features, "--features")
    return source


def run(model: "Model", found: Sequence[str], write: tables.Write, arguments: argparse.Namespace) -> dict[str, str]:
    """Predict batch by batch, with progress; the files that could not be read, with the reason."""
    import numpy as np
    from rich.progress import track
    from torch.utils.data import SequentialSampler

    from robustft.common.files import atomic
    from robustft.common.memory import enough_memory
    from robustft.common.terminal import console
    from robustft.data.loading import file_workers, make_loader
    from robustft.data.own.reading import why_unreadable
    from robustft.deploy.readable import UNREADABLE, ReadableImages

    device = device_of(arguments.device)
    dataset = ReadableImages(found, model.preprocess)
    # Also where the CPU computes: on 2 cores, a process for each was 12% (ViT-B/32) and 34% (tiny model) faster.
    reads_apart = device.type != "cpu" or len(found) >= MANY
    workers = file_workers(reads_apart) if arguments.workers is None else arguments.workers
    loader = make_loader(
        dataset, SequentialSampler(dataset), arguments.batch_size, num_workers=workers, pin_memory=device.type == "cuda"
    )
    started, unreadable, features = time.perf_counter(), dict[str, str](), list[Any]()
    screen = console(stderr=True)
    with enough_memory("predicting", "a smaller --batch-size", "--device=cpu"):
        model.to(device)
        for batch in track(
            loader, "predicting", len(loader), console=screen, transient=True, disable=not screen.is_terminal
        ):
            lost = batch.labels == UNREADABLE
            for index in batch.indices[lost].tolist():
                unreadable[found[index]] = why_unreadable(found[index]) or "could not be read just now"
            if lost.all():
                continue
            of_batch, probabilities = model.answer(batch.images[~lost], calibrated=not arguments.raw)
            answers = model.named(probabilities, arguments.top)
            for index, best in zip(batch.indices[~lost].tolist(), answers, strict=True):
                write([(found[index], rank, name, p) for rank, (name, p) in enumerate(best, start=1)])
            if arguments.features is not None:
                features.append(of_batch.numpy())
    if arguments.features is not None:
        with atomic(arguments.features) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate([np.empty((0, model.head.in_features), np.float32), *features]))
    seconds, done = time.perf_counter() - started, len(found) - len(unreadable)
    where = ", ".join(str(path) for path in (arguments.out, arguments.features) if path is not None)
    speed = f"{counted(done, 'image')} in {seconds:.1f} s ({done / seconds:,.0f} images/s on {device})"
    print(f"{speed}{f': {where}' if where else ''}", file=sys.stderr)
    return unreadable


def device_of(typed: str | None) -> Any:
    """The device to compute on.

    Raises:
        UserError: there is none of that name.
    """
    import torch

    if typed is None:
        here = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if here is None else here
    try:
        device = torch.device(typed)
        torch.empty(1, device=device)
    except Exception as error:  # torch has a dozen ways to say so
        raise UserError(f"--device={typed}: not here ({first_line(error, 120)}). Try --device=cpu") from error
    return device


if __name__ == "__main__":
    sys.exit(main())
