"""`robustft export RUN DIR --format open_clip|onnx|pt2|transformers`: the model of a run for others to load.

DIR holds all that is needed, and a model card. It is written beside and loaded back first: only where the loaded model
gives what the run's does on real images, of the run's data or of --images, does it take its place.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.common import entry, homes, paths
from robustft.common.errors import UserError, install
from robustft.common.files import WriteError, aside, describe, disk_error
from robustft.common.wording import counted, first_line
from robustft.deploy import images, push
from robustft.deploy.formats import FORMATS, module_of
from robustft.deploy.source import CONFIG_DIR, Source, find

if TYPE_CHECKING:
    from torch import Tensor

    from robustft.deploy.model import Model
    from robustft.deploy.text import Whole

COMPARED = 16  # images
AGREES = 1e-3  # of the largest logit: rounding makes 1e-6 of it, another activation 1e-2


@dataclass(frozen=True)
class Parts:
    """What is exported.

    Attributes:
        whole: both towers; None for the forms that need the image tower alone.
    """

    source: Source
    model: "Model"
    whole: "Whole | None"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one message for a mistake of the user."""
    return entry.answer(lambda: export(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=entry.program("export"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its model.safetensors")
    parser.add_argument("folder", type=paths.expand, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument("--format", required=True, metavar="|".join(FORMATS), help="who is to load it")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="compare on these (default: on some of the run's ID set)"
    )
    parser.add_argument(
        "--text", metavar="TAG_OR_FILE", help="weights with the text tower (default: those the run started from)"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub, too")
    parser.add_argument("--config-dir", metavar="DIR", help=CONFIG_DIR)
    return parser.parse_args(arguments)


def export(arguments: argparse.Namespace) -> int:
    """Write, load back, compare, and only then name the folder as asked; the exit status.

    Raises:
        UserError: an argument that cannot be, or a model that does not come back as it was. Nothing is left of it.
    """
    source, found = check(arguments)
    homes.stand_in()
    from robustft.deploy.card import write_card
    from robustft.deploy.model import load  # torch and open_clip take seconds to import
    from robustft.deploy.text import whole_clip

    started = time.perf_counter()
    form, model = module_of(arguments.format), load(source)
    compared = some_images(source, found)
    expected = logits_of(model, compared)
    parts = Parts(source, model, whole_clip(source, model, arguments.text) if form.TOWERS else None)
    with appearing(arguments.folder) as folder:
        with nullcontext() if form.TOWERS else tracing(source):
            form.write(parts, folder)
            found_again = form.read(folder, model.preprocess)(compared)
        difference = compare(found_again, expected)
        write_card(parts, form, folder, arguments.folder.name, difference, len(compared))
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{arguments.folder}: {arguments.format}, {size / 1e6:,.1f} MB, {time.perf_counter() - started:.0f} s")
    print(f"loaded back: logits differ by at most {difference:.1e} on {counted(len(compared), 'image')}")
    return push.push(arguments.folder, arguments.push) if arguments.push else 0


def check(arguments: argparse.Namespace) -> tuple[Source, list[str]]:
    """Refuse what can be seen to be wrong before anything is computed; the source and the images to compare on.

    Raises:
        UserError: names the argument.
    """
    if arguments.format not in FORMATS:
        raise UserError(f"--format={arguments.format}: expected one of {', '.join(FORMATS)}")
    form = module_of(arguments.format)
    if missing := [name for name in form.PACKAGES if find_spec(name) is None]:
        extra = "transformers" if "transformers" in missing else "export"
        raise UserError(f"--format={arguments.format} needs {', '.join(missing)}: {install(extra)}")
    source = find(arguments.run, arguments.config_dir)
    if why := form.refusal(source):
        raise UserError(f"--format={arguments.format}: {why}")
    if arguments.text and not form.TOWERS:
        raise UserError(f"--text does nothing with --format={arguments.format}, which holds the image tower alone")
    folder = arguments.folder
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: is there already. Give a folder that is not, or delete it")
    paths.make_folder(folder.absolute().parent, "DIR")
    if arguments.push:
        push.check(arguments.push)
    return source, images.listed(arguments.images or [])


def some_images(source: Source, found: Sequence[str]) -> list[Any]:
    """Up to 16 images, evenly from those that are given, else from the ID set of the run.

    Raises:
        UserError: they cannot be read, or there are none; says how to give others.
    """
    from robustft.data.own.reading import read_upright

    if found:
        return [read_upright(found[k]) for k in evenly(len(found))]
    from robustft.deploy.again import data_of

    try:
        dataset = data_of(source).evaluation_sets()[0].dataset
        return [images.as_picture(dataset, k) for k in evenly(len(dataset))]
    except UserError as error:
        why = first_line(error)
        raise UserError(f"no images of the run to compare on ({why}). Give some: --images PATH ...") from error


def evenly(count: int) -> list[int]:
    """Up to 16 positions, spread evenly."""
    return [k * count // min(count, COMPARED) for k in range(min(count, COMPARED))]


def logits_of(model: "Model", compared: Sequence[Any]) -> "Tensor":
    """What the run's model makes of images."""
    import torch

    with torch.inference_mode():
        pixels = torch.stack([model.preprocess.pixels(image) for image in compared])
        return model(model.normalise(pixels)).clone()


def compare(found: "Tensor", expected: "Tensor") -> float:
    """The largest difference of logits.

    Raises:
        UserError: it is more than rounding makes, or not a number.
    """
    difference = float((found - expected).abs().max())
    largest = max(1.0, float(expected.abs().max()))
    if not difference <= AGREES * largest:
        raise UserError(
            f"the exported model is not the run's: its logits differ by {difference:.3g}, of {largest:.3g} at most."
            " It is not kept"
        )
    return difference


@contextmanager
def tracing(source: Source) -> Iterator[None]:
    """Makes one line of what a tracer says, in pages, to a network that it cannot follow.

    Raises:
        UserError: says so.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()):
            yield
    except (UserError, OSError):
        raise
    except Exception as error:  # torch.export, the ONNX exporter and onnxruntime have dozens of kinds
        raise UserError(
            f"{source.architecture} cannot be traced ({first_line(error)}). --format=open_clip needs no tracing, where"
            " there is a text tower"
        ) from error
    finally:
        logging.disable(level)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name asked for once the block ends well; else nothing is left of it.

    Raises:
        WriteError: the disk is full or broken.
    """
    try:
        with aside(folder.absolute().parent) as place:
            partial = place / folder.name
            partial.mkdir()
            yield partial
            if folder.is_dir():
                folder.rmdir()  # empty: a symbolic link or what came into it meanwhile is refused by the system
            partial.rename(folder)
    except BaseException as error:
        if (number := disk_error(error)) is not None:
            raise WriteError(f"cannot write {folder}: {describe(number, folder.absolute().parent)}") from error
        raise


if __name__ == "__main__":
    sys.exit(main())
