"""Do the maps find the object? Relevance and Grad-CAM against the scenes' true masks, before and after fine-tuning.

    python experiments/cam_truth/measure.py                                     # the zero-shot model
    python experiments/cam_truth/measure.py RUN/model.safetensors               # and what a run left
    python experiments/cam_truth/measure.py vanilla=FILE masked=FILE --out DIR  # several, under names of your own

Prints the table and leaves it as table.csv and table.md, with maps.png, in the folder.
"""

import argparse
import csv
import io
import sys
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from robustft.cli import naming
from robustft.common import entry, files, paths, terminal
from robustft.common.errors import UserError
from robustft.counterfactual.cam import make_cam
from robustft.counterfactual.mask import object_mask
from robustft.counterfactual.true_maps import patch_coverage
from robustft.data.sampling import draw
from robustft.data.scenes import ScenesData
from robustft.data.sets import EvaluationSet
from robustft.evaluation.localisation import (
    THRESHOLDS,
    Localisation,
    iou,
    localise,
    on_object,
    points_at,
)
from robustft.evaluation.pictures import BLUE, INK, ORANGE, Column, Tile, hatched, heat, outlined, picture, save, sheet
from robustft.models import tiny
from robustft.models.classifier import Classifier
from robustft.models.weights import load_classifier
from robustft.models.zeroshot import zeroshot_classifier

CAMS = ("relevance", "gradcam")
SHOWN = 0.3  # threshold of the masks in the picture: that of the recipe
TRUTH = (255, 70, 160)  # colour of the object's outline
WORDS = ("map", "set", "model")
NUMBERS = ("on object", "by chance", "any pixel", "by chance", *(f"IoU {t}" for t in THRESHOLDS), "limit")


class Measured(NamedTuple):
    cam: str
    set: str
    model: str
    found: Localisation

    def cells(self) -> list[str]:
        """As in WORDS and NUMBERS, in percent."""
        _, pointing, chance, touching, touching_chance, ious, ceiling = astuple(self.found)
        values = (pointing, chance, touching, touching_chance, *ious.values(), ceiling)
        return [self.cam, self.set, self.model, *(f"{100 * value:.1f}" for value in values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="[NAME=]FILE", help="model.safetensors of runs with model=tiny")
    parser.add_argument("--images", type=int, default=1000, help="of each evaluation set")
    parser.add_argument("--data-seed", type=int, default=0, help="data.data_seed: which draw of the sets")
    parser.add_argument("--out", type=paths.expand, default=naming.RUNS / "cam_truth", help="folder to write to")
    arguments = parser.parse_args()
    paths.make_folder(arguments.out, "--out")
    models = load_models(arguments.models)
    sets = scenes(models["zero-shot"], arguments.images, arguments.data_seed)
    rows = measure(models, sets)
    write_tables(arguments.out, rows)
    print(save(arguments.out / "maps.png", draw_maps(models, sets)))


def load_models(named: list[str]) -> dict[str, Classifier]:
    """The zero-shot model first, then the files; one without a name is called after its run's folder."""
    zeroshot = zeroshot_classifier(
        tiny.ARCHITECTURE, "embedded", ScenesData.class_names, ScenesData.templates, tokenizer=tiny.tokenizer()
    )
    models = {"zero-shot": zeroshot}
    for argument in named:
        name, _, file = argument.rpartition("=")
        path = paths.expand(file)
        name = name or path.resolve().parent.parent.name
        if name in models:
            raise UserError(f"two models are called {name}: name them, as in first={file}")
        models[name] = load_classifier(path, like=zeroshot, classes=ScenesData.class_names)
    return models


def scenes(model: Classifier, images: int, data_seed: int) -> list[EvaluationSet]:
    data = ScenesData(
        preprocess=model.preprocess, seed=0, batch_size=1, eval_batch_size=1, holdout=0,
        test_images=images, data_seed=data_seed,
    )  # fmt: skip
    data.setup()
    return data.sets


def maps(model: Classifier, evaluation_set: EvaluationSet, cam: str, chosen: Tensor | None = None) -> Tensor:
    """The maps of the true classes, [images, patches]."""
    chosen = torch.arange(len(evaluation_set.dataset)) if chosen is None else chosen
    explain, found = make_cam(cam), []
    for indices in chosen.split(250):
        batch = evaluation_set.dataset.__getitems__(indices.tolist())
        found.append(explain(model, model.preprocess.normalise(batch.images), batch.labels)[-1])
    return torch.cat(found)


def measure(models: dict[str, Classifier], sets: list[EvaluationSet]) -> list[Measured]:
    rows = []
    with Progress(transient=True) as progress:
        task = progress.add_task("maps", total=len(sets) * len(CAMS) * len(models))
        for cam in CAMS:
            for evaluation_set in sets:
                for name, model in models.items():
                    coverage = patch_coverage(evaluation_set.dataset.masks, tuple(model.visual.grid_size))
                    found = localise(maps(model, evaluation_set, cam), coverage)
                    rows.append(Measured(cam, evaluation_set.name, name, found))
                    progress.advance(task)
    return rows


def write_tables(folder: Path, rows: list[Measured]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    console = terminal.console()
    for cam in CAMS:
        table = Table(title=f"{cam} against the true object masks, in %")
        table.add_column(", ".join(WORDS[1:]))
        for title in NUMBERS:
            table.add_column(title, justify="right")
        chosen = [row for row in rows if row.cam == cam]
        for row, following in zip(chosen, [*chosen[1:], None], strict=True):
            words, numbers = row.cells()[1 : len(WORDS)], row.cells()[len(WORDS) :]
            table.add_row(", ".join(words), *numbers, end_section=following is None or following.set != row.set)
        terminal.print_table(console, table)
    lines = [[*WORDS, *NUMBERS], *(row.cells() for row in rows)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    files.write(folder / "table.csv", text.getvalue())
    lines.insert(1, ["---"] * len(WORDS) + ["---:"] * len(NUMBERS))
    files.write(folder / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))


def draw_maps(models: dict[str, Classifier], sets: list[EvaluationSet], seed: int = 0):
    """One image of each set: the object's outline, and every model's relevance and object mask under it."""
    columns = [Column("image", "and the true outline")]
    for name in models:
        columns += [Column("relevance", name), Column(f"mask above {SHOWN}", name)]
    rows = []
    for number, evaluation_set in enumerate(sets):
        dataset = evaluation_set.dataset
        index = draw(len(dataset), len(sets), seed)[number % len(dataset)][None]
        shown, truth = picture(dataset[int(index)][0]), dataset.masks[index]
        tiles = [Tile(outlined(shown, truth[0], TRUTH), evaluation_set.name, INK)]
        for model in models.values():
            grid = tuple(model.visual.grid_size)
            cam, coverage = maps(model, evaluation_set, "relevance", index), patch_coverage(truth, grid)
            mask, on = object_mask(cam, SHOWN), bool(points_at(cam, on_object(coverage)))
            tiles += [
                Tile(
                    outlined(heat(shown, cam[0].unflatten(0, grid)), truth[0], TRUTH),
                    f"hottest {'on' if on else 'off'} the object",
                    BLUE if on else ORANGE,
                ),
                Tile(
                    outlined(hatched(shown, mask[0].unflatten(0, grid)), truth[0], TRUTH),
                    f"IoU {iou(mask, coverage).item():.0%}",
                ),
            ]
        rows.append(tiles)
    return sheet("Maps against the true object masks", columns, rows)


if __name__ == "__main__":
    sys.exit(entry.answer(main))
