"""The gallery of a run: where the models look, what the masks take out, what the fills put in."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from robustft.common.randomness import generator
from robustft.counterfactual.cam import make_cam
from robustft.counterfactual.fill import multi_source, replace_patches
from robustft.counterfactual.mask import context_mask, object_mask, random_mask
from robustft.counterfactual.true_maps import maps_of
from robustft.data.sampling import draw
from robustft.data.sets import EvaluationSet
from robustft.evaluation.pictures import BLUE, INK, ORANGE, Column, Tile, blanked, hatched, heat, picture, save, sheet
from robustft.evaluation.top1 import predict
from robustft.models.classifier import Classifier

IMAGES = 4  # of each evaluation set
RECIPE = {"cam": "relevance", "threshold": 0.3}  # of the maps and masks shown to a run that has none


class Shown(NamedTuple):
    """The images of one evaluation set that are shown."""

    pixels: UInt8[Tensor, "images 3 height width"]
    right: Bool[Tensor, "images classes"]  # the classes that are right for each image
    allowed: Bool[Tensor, " classes"]  # the classes that can be predicted

    @property
    def target(self) -> Int64[Tensor, " images"]:
        """The class that is explained: the first of the right ones."""
        return self.right.int().argmax(1)


class View(NamedTuple):
    """What a model makes of the images; no map where it has none."""

    cam: Float[Tensor, "images rows columns"] | None
    predicted: Int64[Tensor, " images"]


Labelled = tuple[Column, list[Tile]]


def write_gallery(
    folder: Path,
    sets: Sequence[EvaluationSet],
    models: Mapping[str, Classifier],
    class_names: Sequence[str],
    *,
    mask: Mapping[str, Any],
    fill: str,
    source: str,
    images: int = IMAGES,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """One picture per evaluation set, ``folder/<name of the set>.png``: a row per image, a column per step.

    Columns: the image, the map of every model with its prediction, the masks, and the three fills of the run's mask,
    or of the object mask where the run has none: the title then says that it is an illustration. What is filled in
    comes from the other images of the picture. The images depend on the set and on ``seed`` alone, so that pictures of
    different runs can be compared. Where a model has no map, predictions alone are shown.

    Args:
        models: by the title of their column, in its order. They are left as they are.
        mask: kind (none, random, object or context), threshold or rate, cam, source, layers. ``RECIPE`` stands in for
            what it does not need.
        fill: none, single or multi; marked as that of the run.
        source: title of the model whose map makes the masks.
    """
    maps = all(cam_of(model) is not None for model in models.values())
    mask = shown_mask(mask, list(models.values()))
    models = {title: deepcopy(model).to(device).eval() for title, model in models.items()}
    pictures = []
    for evaluation_set in sets:
        chosen = draw(len(evaluation_set.dataset), images, seed).tolist()
        if not chosen:
            continue
        shown = _images(evaluation_set, chosen)
        views = {title: look(model, shown, mask if maps else None) for title, model in models.items()}
        columns = [_image_column(shown, class_names)]
        columns += [_model_column(title, view, shown, class_names) for title, view in views.items()]
        title = f"{evaluation_set.name}: predictions. {models[source].architecture.name} has no maps, masks and fills"
        if (cam := views[source].cam) is not None:
            if mask["source"] == "truth" and evaluation_set.objects is not None:
                grid = models[source].grid
                cam = maps_of(evaluation_set.objects[chosen], grid).unflatten(1, grid)
            columns += _mask_columns(shown, cam, mask, fill, models[source].patch_size, seed)
            title = _title(evaluation_set, mask, source, len(models))
        titles, tiles = zip(*columns, strict=True)
        image = sheet(title, titles, list(zip(*tiles, strict=True)))
        pictures.append(save(folder / f"{evaluation_set.name}.png", image))
    return pictures


def cam_of(model: Classifier) -> str | None:
    """Name the map that can be taken of a model; None: there is none."""
    tower = model.tower
    if tower.grid is None:
        return None
    return "relevance" if tower.attentions() else "gradcam" if tower.cam_layer() is not None else None


def shown_mask(mask: Mapping[str, Any], models: Sequence[Classifier]) -> dict[str, Any]:
    """Complete the settings of a run's mask to those of maps and masks that are shown of all of the models.

    Args:
        mask: kind, threshold, rate, cam, layers; ``RECIPE`` stands in for what is None.
    """
    recipe = RECIPE | {"cam": "gradcam" if "gradcam" in map(cam_of, models) else "relevance"}
    return {**mask, **{key: value for key, value in recipe.items() if mask[key] is None}}


def _title(evaluation_set: EvaluationSet, mask: Mapping[str, Any], source: str, models: int) -> str:
    title = f"{evaluation_set.name}: {mask['cam']} of the true class"
    if mask["kind"] == "none":
        whose = f" ({source})" if models > 1 else ""
        return f"{title}. Masks{whose} and fills for illustration: this run uses none"
    whose = "the true objects" if mask["source"] == "truth" else f"the map of the {source}"
    masks = "object and context mask" if mask["kind"] == "random" else "masks"
    return f"{title}, {masks} from {whose}. Orange: what this run uses"


def _images(evaluation_set: EvaluationSet, chosen: Sequence[int]) -> Shown:
    pixels, labels, _ = zip(*(evaluation_set.dataset[index] for index in chosen), strict=True)
    return Shown(torch.stack(pixels), evaluation_set.correct[list(labels)], evaluation_set.allowed)


def look(model: Classifier, shown: Shown, mask: Mapping[str, Any] | None) -> View:
    """Take the map and the prediction of each image.

    Args:
        mask: cam and layers of the map; None: the prediction alone.
    """
    device = model.head.weight.device
    images = model.preprocess.normalise(shown.pixels.to(device))
    if mask is None:
        with torch.no_grad():
            return View(None, predict(model(images).cpu(), shown.allowed))
    explain = make_cam(mask["cam"], mask["layers"])
    _, logits, cam = explain(model, images, shown.target.to(device))
    return View(cam.cpu().unflatten(1, model.grid), predict(logits.detach().cpu(), shown.allowed))


def _image_column(shown: Shown, class_names: Sequence[str]) -> Labelled:
    named = zip(shown.pixels, shown.target.tolist(), strict=True)
    return Column("image", "true class"), [Tile(picture(image), class_names[k], INK) for image, k in named]


def _model_column(title: str, view: View, shown: Shown, class_names: Sequence[str]) -> Labelled:
    """The images under a model's map, where it has one, with what it takes them for."""
    tiles = []
    maps = [None] * len(shown.pixels) if view.cam is None else list(view.cam)
    for image, right, cam, guess in zip(shown.pixels, shown.right, maps, view.predicted.tolist(), strict=True):
        verdict, colour = ("right", BLUE) if right[guess] else ("wrong", ORANGE)
        drawn = picture(image) if cam is None else heat(picture(image), cam)
        tiles.append(Tile(drawn, f"{verdict}: {class_names[guess]}", colour))
    return Column("prediction" if view.cam is None else "map", title), tiles


def _mask_columns(
    shown: Shown,
    cam: Float[Tensor, "images rows columns"],
    mask: Mapping[str, Any],
    fill: str,
    patch_size: int,
    seed: int,
) -> list[Labelled]:
    """The masks there are, and what each fill makes of that of the run."""
    grid, random = cam.shape[1:], generator("gallery", seed)
    masks = masks_of(cam, mask, fill, random)
    kind, filled = mask["kind"], filled_mask(mask)
    own, _ = masks[filled]
    used = None if kind == "none" else fill
    columns: list[Labelled] = []
    for name, (chosen, note) in masks.items():
        tiles = [
            Tile(hatched(picture(image), patches.unflatten(0, grid)), f"{patches.float().mean():.0%} masked")
            for image, patches in zip(shown.pixels, chosen, strict=True)
        ]
        columns.append((Column(f"{name} mask", note, name == kind), tiles))
    single, multi = fills_of(shown.pixels, own, patch_size, random)
    removed = [
        blanked(picture(image), patches.unflatten(0, grid)) for image, patches in zip(shown.pixels, own, strict=True)
    ]
    return [
        *columns,
        (Column("no fill", f"of the {filled} mask", used == "none"), [Tile(image) for image in removed]),
        (Column("single fill", "from the next image", used == "single"), [Tile(picture(x_cf)) for x_cf in single]),
        (Column("multi fill", "from all the others", used == "multi"), [Tile(picture(x_cf)) for x_cf in multi]),
    ]


def filled_mask(mask: Mapping[str, Any]) -> str:
    """Name the mask that fills are shown of: the run's, or the object mask where it has none."""
    return "object" if mask["kind"] == "none" else mask["kind"]


def masks_of(
    cam: Float[Tensor, "images rows columns"], mask: Mapping[str, Any], fill: str, random: torch.Generator
) -> dict[str, tuple[Bool[Tensor, "images patches"], str]]:
    """Make the masks that are shown, each with what makes it: object and context, and random ones of a run with such.

    Args:
        mask: kind, threshold and rate.
    """
    count, kind, threshold, rate = len(cam), mask["kind"], mask["threshold"], mask["rate"]
    cam = cam.flatten(1)
    masks = {
        "object": (object_mask(cam, threshold), f"map above {threshold}"),
        "context": (context_mask(cam, threshold), "all the others"),
    }
    if kind == "random":
        by_chance = random_mask(count, cam.shape[1], rate, random, exact=fill == "none")
        masks = {"random": (by_chance, f"rate {rate}"), **masks}
    return masks


def fills_of(
    pixels: UInt8[Tensor, "images 3 height width"],
    chosen: Bool[Tensor, "images patches"],
    patch_size: int,
    random: torch.Generator,
) -> tuple[UInt8[Tensor, "images 3 height width"], UInt8[Tensor, "images 3 height width"]]:
    """Fill the chosen patches from the next image, and from all the others."""
    count = len(pixels)
    next_one = ((torch.arange(count) + 1) % count)[:, None].expand_as(chosen)
    others = multi_source(count, chosen.shape[1], random) if count > 1 else next_one
    images = pixels.float()
    single, multi = (replace_patches(images, chosen, origin, patch_size).byte() for origin in (next_one, others))
    return single, multi
