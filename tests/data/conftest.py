"""A small data root in the true layouts: 12 classes, so that names and numbers sort differently."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustft.data.imagenet import ImageNetClasses, ImageNetData
from robustft.data.sets import Preprocess

CLASSES = ImageNetClasses(
    wnids=[f"n{k:08d}" for k in range(12)],
    names=[f"thing {k}" for k in range(12)],
    imagenet_r=[f"n{k:08d}" for k in (1, 4, 7)],
    imagenet_a=[f"n{k:08d}" for k in (0, 11)],
)
PREPROCESS = Preprocess(16, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def write_image(path: Path, value: int = 128, size: tuple[int, int] = (24, 20)) -> None:
    """An image whose pixels are near `value`; PNG or JPEG by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(-3, 4, (size[1], size[0], 3))
    Image.fromarray(np.clip(value + noise, 0, 255).astype(np.uint8)).save(path)


def write_objectnet(root: Path) -> None:
    """Five folders: `cup` is class 2 or 3, `bat` 9, `alarm` 0; the other two are no ImageNet class."""
    labels = {"cup": "Cup", "bat": "Bat (sports)", "alarm": "Alarm", "rope": "Rope", "glue": "Glue"}
    names_2012 = ["the bat", "mug", "alarm, bell", "beaker"]  # in an order of their own
    mappings = {
        "folder_to_objectnet_label.json": json.dumps(labels),
        "objectnet_to_imagenet_1k.json": json.dumps(
            {"Cup": "mug; beaker", "Bat (sports)": "the bat", "Alarm": "alarm, bell"}
        ),
        "pytorch_to_imagenet_2012_id.json": json.dumps({"9": 0, "2": 1, "0": 2, "3": 3}),
        "imagenet_to_label_2012_v2": "\n".join(names_2012) + "\n",
    }
    (root / "mappings").mkdir(parents=True)
    for name, text in mappings.items():
        (root / "mappings" / name).write_text(text)
    for folder in labels:
        image = Image.new("RGB", (24, 20), (255, 0, 0))  # the red frame ...
        image.paste((0, 0, 200), (2, 2, 22, 18))  # ... round the picture
        (root / "images" / folder).mkdir(parents=True)
        image.save(root / "images" / folder / "0.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for k, wnid in enumerate(CLASSES.wnids):
        for i in range(5):
            write_image(tmp_path / f"ILSVRC2012/train/{wnid}/{wnid}_{i}.JPEG", 20 * k)
        write_image(tmp_path / f"ILSVRC2012/val/{wnid}/val_{k}.JPEG", 20 * k)
        write_image(tmp_path / f"imagenetv2-matched-frequency-format-val/{k}/x.jpeg", 20 * k)
        write_image(tmp_path / f"imagenet-sketch/{wnid}/sketch_0.JPEG", 20 * k)
    for folder, wnids in (("imagenet-r", CLASSES.imagenet_r), ("imagenet-a", CLASSES.imagenet_a)):
        for wnid in wnids:
            write_image(tmp_path / folder / wnid / "0.jpg", 20 * CLASSES.wnids.index(wnid))
    write_objectnet(tmp_path / "objectnet-1.0")
    return tmp_path


def make_data(root: Path | None, **options) -> ImageNetData:
    usual = {"seed": 0, "batch_size": 8, "eval_batch_size": 4, "num_workers": 0}
    usual |= {"classes": CLASSES, "preprocess": PREPROCESS}
    return ImageNetData(root=None if root is None else str(root), **(usual | options))
