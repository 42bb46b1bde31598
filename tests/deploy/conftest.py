"""Runs that have left models, and images to use them on."""

from pathlib import Path

import pytest
from PIL import Image

from tests.data.own import colour, write_domains
from tests.small import do, work  # noqa: F401 (a fixture)

OWN = "data=folders data.batch_size=8 data.eval_batch_size=8 data.train={root}/photo data.shifts.drawn={root}/sketch"


@pytest.fixture(scope="module")
def run(work: Path) -> Path:  # noqa: F811
    """Of the tiny CLIP on scenes, a step away from its weights."""
    do(work / "one", "model.pretrained=embedded", "method=finetune", "trainer.max_steps=2")
    return work / "one"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of several kinds, one of them turned by its EXIF data."""
    folder = tmp_path_factory.mktemp("pictures") / "holiday"
    for number, name in enumerate(("b.png", "a 1.png", "deep/in/ü=,.webp", "Z.PNG")):
        colour(folder / name, number, (60 + number, 50))
    grey = Image.open(colour(folder / "grey.png", 9, (70, 90))).convert("L")
    grey.save(folder / "grey.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(colour(folder / "turned.png", 11, (90, 55))).save(folder / "turned.png", exif=turned)
    return folder


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a user's own, in domain folders."""
    return write_domains(tmp_path_factory.mktemp("own"))
