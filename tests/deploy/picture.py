"""python -m tests.deploy.picture RUN IMAGE… docs/app.webp: the page of `robustft app RUN` with images dropped on it."""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import browsing

WIDTH = 1000  # pixels
DONE = "!document.querySelector('main').hidden && !document.querySelector('main [aria-busy=true], #strip [disabled]')"


def picture(run: Path, images: list[Path], out: Path) -> None:
    """Serve, drop, wait, and write a WebP: a tenth of a PNG's bytes."""
    line = [sys.executable, "-m", "robustft", "app", str(run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.match(r"http\S+", process.stdout.readline())
        assert found, "no server"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, browsing(Path(folder)) as page:
            page.open(found[0], (WIDTH, 800))
            page.drop([path.resolve() for path in images])
            page.until(DONE, 600)
            Image.open(page.picture(Path(folder) / "page.png")).convert("RGB").save(out, quality=80, method=6)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.picture", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("out", type=Path, metavar="FILE.webp")
    arguments = parser.parse_args()
    picture(arguments.run, arguments.images, arguments.out)
