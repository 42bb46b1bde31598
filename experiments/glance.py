"""The picture at the top of README.md: the idea and the result at a glance.

    python experiments/glance.py                       # docs/glance.png; the result is that of experiments/seeds
    python experiments/glance.py --image 5 --other 40  # other training images

Above: an image, the patches that speak for its class, and the counterfactual sample, in which they are those of another
image; its class is gone, its context is not, and student and teacher are asked to agree on it. Below: ID against OOD
accuracy, every seed and the mean.
"""

import argparse
import sys
from pathlib import Path

import torch

from robustft.common import entry, homes, paths
from robustft.common.errors import UserError
from robustft.common.files import atomic
from robustft.counterfactual.cam import relevance
from robustft.counterfactual.fill import replace_patches
from robustft.counterfactual.mask import object_mask
from robustft.data.scenes import ScenesData
from robustft.evaluation.pictures import hatched, heat, picture
from robustft.models import tiny
from robustft.models.zeroshot import zeroshot_classifier
from robustft.report.groups import group_over_seeds
from robustft.report.plot import style
from robustft.report.runs import read_runs
from robustft.studies import store

HERE = Path(__file__).resolve().parent
THRESHOLD = 0.3
SHOWN = ("zero-shot", "vanilla fine-tuning", "distillation, no mask", "object mask, single-fill")


def idea(chosen: int, other: int):
    """(title, line below, picture) of each step."""
    names = ScenesData.class_names
    model = zeroshot_classifier("tiny", "embedded", names, ScenesData.templates, tokenizer=tiny.tokenizer()).eval()
    data = ScenesData(preprocess=model.preprocess, seed=0, batch_size=32, eval_batch_size=250, holdout=2000)
    images, labels, _ = data.training_set().__getitems__([chosen, other])
    cam = relevance(model, model.preprocess.normalise(images), labels)[-1]
    mask = object_mask(cam, THRESHOLD)
    source = torch.tensor([1, 0])[:, None].expand_as(mask)
    sample = replace_patches(images.float(), mask, source, model.patch_size).byte()
    grid = model.grid
    (ours, theirs), (name, _) = map(picture, images), (names[int(label)] for label in labels)
    return [
        ("x", f"an image of a {name}", ours),
        ("relevance", "which patches speak for it?", heat(ours, cam[0].unflatten(0, grid))),
        ("mask", f"those above {THRESHOLD}", hatched(ours, mask[0].unflatten(0, grid))),
        ("another image", "of the batch", theirs),
        ("x_cf", "its patches fill the mask", picture(sample[0])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=paths.expand, default=HERE / "seeds" / store.FILE, help="of the seeds study")
    parser.add_argument("--out", type=paths.expand, default=HERE.parent / "docs" / "glance.png")
    parser.add_argument("--image", type=int, default=183, help="which training image")
    parser.add_argument("--other", type=int, default=194, help="the one whose patches are filled in")
    arguments = parser.parse_args()
    paths.for_file(arguments.out, "--out")
    if not arguments.results.exists():
        raise UserError(f"there is nothing at {arguments.results}: run experiments/seeds/study.py first")
    groups = group_over_seeds(read_runs([arguments.results]))
    homes.stand_in()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.3), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    steps = idea(arguments.image, arguments.other)
    for axes, (title, note, shown) in zip(above.subplots(1, len(steps)), steps, strict=True):
        axes.imshow(shown)
        axes.set_title(title, fontsize=11, pad=4)
        axes.set_xlabel(note, fontsize=9, color="#555555")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    words, plot = below.subplots(1, 2, width_ratios=(1, 1.6))
    words.axis("off")
    words.text(0, 0.5, LINES, fontsize=10.5, va="center", linespacing=1.5).set_in_layout(False)
    draw(plot, [group for group in groups if style(group).name in SHOWN])
    with atomic(arguments.out) as partial:
        figure.savefig(partial, dpi=150, format="png")
    print(arguments.out)


LINES = """Fine-tuning learns from the images x,
and is held to the zero-shot model's
view of counterfactual samples x_cf,
whose patches that speak for the
class are another image's:

loss =  cross-entropy on x
   + β · ‖ student(x_cf) − zero-shot(x_cf) ‖²

Right: what that does on the embedded
benchmark, five seeds, over β."""


def draw(axes, groups) -> None:
    """Each system's seeds and mean; systems at several β as a curve."""
    by_name = {}
    for group in groups:
        by_name.setdefault(style(group).name, []).append(group)
    for name in (name for name in SHOWN if name in by_name):
        look = style(by_name[name][0])
        points = [[(100 * x, 100 * y) for x, y in group.points()] for group in by_name[name]]
        seeds = [point for of_one in points for point in of_one]
        means = sorted(tuple(sum(v) / len(v) for v in zip(*of_one, strict=True)) for of_one in points)
        axes.scatter(*zip(*seeds, strict=True), s=12, c=look.colour, alpha=0.35, linewidths=0)
        shown = {"s": 170 if look.marker == "*" else 60, "c": look.colour, "marker": look.marker, "edgecolors": "white"}
        axes.plot(*zip(*means, strict=True), color=look.colour, linewidth=1)
        axes.scatter(*zip(*means, strict=True), **shown, label=name)
    axes.set(xlabel="ID accuracy, %", ylabel="accuracy under shift, %")
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)


if __name__ == "__main__":
    sys.exit(entry.answer(main))
