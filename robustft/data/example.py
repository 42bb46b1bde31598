"""robustft example DIR: images as one has them, to try everything with: domain/class/image, and tables of them.

They are the scenes of the embedded benchmark as files, so that `model=tiny` knows what they show and nothing is
downloaded: photos (objects in their usual places, to train on), drawings, renditions, and photos of unusual places.
"""

import argparse
import sys
from collections.abc import Sequence

from robustft.common import entry, paths
from robustft.common.errors import UserError
from robustft.common.wording import counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder, say what to do with it; the exit status.

    Raises:
        UserError: something lies in the folder, or the number of images cannot be.
    """
    parser = argparse.ArgumentParser(prog=entry.program("example"), description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=paths.expand, metavar="DIR", help="a new folder")
    parser.add_argument("--images", type=int, default=40, help="images for each of 4 domains and 16 classes (40)")
    given = parser.parse_args(arguments)
    if given.images < 1:
        raise UserError(f"--images={given.images}: expected a whole number, 1 or more")
    paths.refuse_filled(given.folder)
    from robustft.data.scenes.example import DOMAINS, write_example  # torch takes seconds to import
    from robustft.data.scenes.recipes import CLASSES

    count, classes = write_example(given.folder, given.images), counted(len(CLASSES), "class", "classes")
    print(f"{counted(count, 'image')} in {given.folder}: {', '.join(DOMAINS)}, each with {classes}")
    print("In table.csv and places.csv: their classes, and what is around them")
    print(f"Next: {entry.program()} model=tiny data=domains data.root={given.folder} data.source=photo"
          " data.templates=plain")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(entry.answer(main))
