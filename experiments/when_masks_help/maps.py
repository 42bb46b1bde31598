"""How well the maps find the object on training images: of the models that the study kept, and of the zero-shot one.

python experiments/when_masks_help/maps.py runs/studies/experiments/when_masks_help      # writes maps.md
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from robustft.common import paths
from robustft.common.errors import UserError
from robustft.common.files import write
from robustft.common.imports import script
from robustft.counterfactual.cam import make_cam
from robustft.counterfactual.mask import object_mask
from robustft.counterfactual.true_maps import patch_coverage
from robustft.data.scenes import ScenesData
from robustft.evaluation.localisation import iou, localise
from robustft.evaluation.summary import percent
from robustft.models import tiny
from robustft.models.classifier import Classifier
from robustft.models.weights import load_classifier
from robustft.models.zeroshot import zeroshot_classifier

HERE = Path(__file__).resolve().parent
THRESHOLDS, IMAGES = (0.05, 0.1, 0.3), 500
KINDS = {"correlation": float, "train_images": int}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=paths.expand, help="the folder in which the study leaves its runs")
    arguments = parser.parse_args()
    plan = script(HERE / "study.py")
    seed = plan.SEEDS[0]
    zeroshot = zeroshot_classifier(
        tiny.ARCHITECTURE, "embedded", ScenesData.class_names, ScenesData.templates, tokenizer=tiny.tokenizer()
    )
    rows = [
        f"| condition | model | {' | '.join(f'share, precision, IoU at {t:g}' for t in THRESHOLDS)} | points at it |"
    ]
    rows.append("|---|---|" + "---:|" * (len(THRESHOLDS) + 1))
    for condition, settings in plan.CONDITIONS.items():
        file = arguments.runs / plan.run_of(plan.OURS, condition, 1.0, seed) / "model.safetensors"
        if not file.is_file():
            raise UserError(f"{file}: no such file. The study leaves it: run it first, here")
        tuned = load_classifier(file, like=zeroshot, classes=ScenesData.class_names)
        images, labels, coverage = training_images(zeroshot, settings, plan.draw_of(seed))
        for name, model in (("zero-shot", zeroshot), ("tuned", tuned)):
            rows.append(f"| {condition} | {name} | {found(model, images, labels, coverage)} |")
    print(text := "\n".join(rows) + "\n")
    write(HERE / "maps.md", text)


def training_images(model: Classifier, settings: tuple[str, ...], draw: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first images that a condition trains on, their classes, and how much of each patch is the object's."""
    own = dict(one.removeprefix("data.").split("=") for one in settings if one.startswith("data."))
    data = ScenesData(
        preprocess=model.preprocess, seed=0, batch_size=1, eval_batch_size=1, holdout=0, data_seed=draw,
        **{name: kind(own[name]) for name, kind in KINDS.items() if name in own},
    )  # fmt: skip
    chosen = torch.arange(IMAGES)
    batch = data.training_set().__getitems__(chosen.tolist())
    return batch.images, batch.labels, patch_coverage(data.objects()[chosen], tuple(model.visual.grid_size))


def found(model: Classifier, images: Tensor, labels: Tensor, coverage: Tensor) -> str:
    """In percent: which share of patches a mask takes, how much of it is the object, its intersection over union."""
    explain = make_cam("relevance")
    pieces = zip(images.split(250), labels.split(250), strict=True)
    cam = torch.cat([explain(model, model.preprocess.normalise(x), y)[-1] for x, y in pieces])
    cells = []
    for threshold in THRESHOLDS:
        mask = object_mask(cam, threshold)
        precision = (coverage * mask).sum(1) / mask.sum(1).clamp(min=1)
        values = (mask.float().mean(), precision.mean(), iou(mask, coverage).mean())
        cells.append(", ".join(percent(float(value)) for value in values))
    return " | ".join([*cells, percent(localise(cam, coverage, THRESHOLDS).pointing)])


if __name__ == "__main__":
    main()
