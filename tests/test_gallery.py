"""The gallery: the pictures there should be, the same bytes again, and what they show."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from PIL import Image

from robustft.cli import compose
from robustft.cli.main import run_in
from robustft.data.sets import EvaluationSet, TensorImages
from robustft.evaluation.gallery import write_gallery
from robustft.evaluation.pictures import GREY, Column, Tile, blanked, hatched, heat, outlined, picture, sheet
from robustft.models.tower import Tower
from tests.methods.micro import CLASSES, micro, same_bits

BEFORE, AFTER = "zero-shot teacher", "fine-tuned student"
OBJECT = {"kind": "object", "threshold": 0.3, "rate": None, "cam": "relevance", "source": "student", "layers": None}
CONTEXT = OBJECT | {"kind": "context", "cam": "gradcam"}
RANDOM = {"kind": "random", "threshold": None, "rate": 0.5, "cam": None, "source": None, "layers": None}
NONE = dict.fromkeys(OBJECT) | {"kind": "none"}


def evaluation_set(name: str, images: int = 9, seed: int = 0, size: int = 16) -> EvaluationSet:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, size, size), generator=random, dtype=torch.uint8)
    labels = torch.arange(images) % len(CLASSES)
    correct = torch.eye(len(CLASSES), dtype=torch.bool)
    return EvaluationSet(name, TensorImages(pixels, labels), correct, [str(i) for i in range(images)])


def gallery(folder, sets, mask=OBJECT, fill="single", source=AFTER, **options):
    models = {BEFORE: micro(0), AFTER: micro(1)}
    return write_gallery(folder, sets, models, CLASSES, mask=mask, fill=fill, source=source, **options)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("mask", "fill"),
    [(OBJECT, "single"), (OBJECT, "none"), (CONTEXT, "multi"), (RANDOM, "none"), (RANDOM, "multi"), (NONE, "none")],
)
def test_one_picture_a_set_and_the_same_bytes_again(tmp_path, mask, fill):
    sets = [evaluation_set("one"), evaluation_set("other", seed=1)]
    first, second = (gallery(tmp_path / folder, sets, mask, fill) for folder in ("a", "b"))
    assert (
        [path.name for path in first] == ["one.png", "other.png"] == sorted(p.name for p in (tmp_path / "a").iterdir())
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes() != first[1].read_bytes()


def test_a_model_without_maps_shows_its_predictions(tmp_path):
    sets = [evaluation_set("one")]
    blind = micro(1)
    vars(blind)["_tower"] = (Tower(blind.visual),)  # nothing is known of it but that it has features
    models = {BEFORE: micro(0), AFTER: blind}
    (found,) = write_gallery(tmp_path, sets, models, CLASSES, mask=NONE, fill="none", source=AFTER)
    (whole,) = gallery(tmp_path / "whole", sets, NONE)
    ours, theirs = pixels(found), pixels(whole)
    side = 192
    assert ours.shape[0] == theirs.shape[0] and ours.shape[1] < 4 * (side + 30) < theirs.shape[1]  # three columns


def test_models_are_left_as_they_are(tmp_path):
    model = micro(0).train()
    twin = deepcopy(model)
    write_gallery(tmp_path, [evaluation_set("one")], {AFTER: model}, CLASSES, mask=OBJECT, fill="none", source=AFTER)
    assert same_bits(model, twin) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("images", [1, 2])
def test_sets_of_few_images(tmp_path, images):
    (path,) = gallery(tmp_path, [evaluation_set("few", images), evaluation_set("empty", 0)], fill="multi")
    taller = gallery(tmp_path / "more", [evaluation_set("few", 9)])[0]
    assert Image.open(path).width == Image.open(taller).width and Image.open(path).height < Image.open(taller).height


def test_source_threshold_and_seed_of_the_draw_matter(tmp_path):
    sets = [evaluation_set("one", 40)]
    variants = {
        "student": gallery(tmp_path / "student", sets),
        "teacher": gallery(tmp_path / "teacher", sets, source=BEFORE),
        "threshold": gallery(tmp_path / "threshold", sets, OBJECT | {"threshold": 0.9}),
        "seed": gallery(tmp_path / "seed", sets, seed=1),
    }
    assert len({path.read_bytes() for (path,) in variants.values()}) == len(variants)


@pytest.fixture
def drawn(monkeypatch):
    """What `sheet` is asked to draw: (title, columns, rows) of each sheet."""
    calls = []

    def watched(*content):
        calls.append(content)
        return sheet(*content)

    monkeypatch.setattr("robustft.evaluation.gallery.sheet", watched)
    return calls


MAPS = ["image", "map", "map"]
BY_MAP, FILLS = ["object mask", "context mask"], ["no fill", "single fill", "multi fill"]


@pytest.mark.parametrize(
    ("mask", "fill", "columns", "marked"),
    [
        (OBJECT, "none", [*MAPS, *BY_MAP, *FILLS], ["object mask", "no fill"]),
        (CONTEXT, "multi", [*MAPS, *BY_MAP, *FILLS], ["context mask", "multi fill"]),
        (RANDOM, "single", [*MAPS, "random mask", *BY_MAP, *FILLS], ["random mask", "single fill"]),
        (NONE, "none", [*MAPS, *BY_MAP, *FILLS], []),
        (NONE, "single", [*MAPS, *BY_MAP, *FILLS], []),
    ],
)
def test_columns_and_what_is_marked(tmp_path, drawn, mask, fill, columns, marked):
    """Images, both maps, object and context mask and three fills, whatever the mask; a run without one is told so."""
    gallery(tmp_path, [evaluation_set("one")], mask, fill)
    title, shown, _ = drawn[0]
    assert [column.title for column in shown] == columns
    assert [column.title for column in shown if column.marked] == marked
    assert ("for illustration: this run uses none" in title) == (mask is NONE)
    assert ("Orange" in title) == (mask is not NONE)


def test_a_run_without_a_mask_is_shown_the_recipe_s(tmp_path, drawn):
    """Every picture is that of an object mask by relevance at 0.3, and random masks come with the same two."""
    for mask in (OBJECT, NONE, RANDOM):
        gallery(tmp_path, [evaluation_set("one")], mask)
    ours, without, random = (np.array([[tile.picture for tile in row] for row in rows]) for _, _, rows in drawn)
    assert np.array_equal(ours, without)
    assert np.array_equal(ours[:, :5], random[:, [0, 1, 2, 4, 5]])  # all but the random mask and the fills


def test_label_sets_explain_a_right_class(tmp_path):
    """A label whose right classes are 1 and 2 is explained and named as class 1."""
    plain = evaluation_set("one")
    of_one = replace(plain, dataset=TensorImages(plain.dataset.images, torch.ones(9, dtype=torch.int64)))
    several = replace(of_one, correct=torch.tensor([[True, False, False], [False, True, True], [False, False, True]]))
    one, other = (gallery(tmp_path / str(k), [s])[0] for k, s in enumerate((of_one, several)))
    side = picture(plain.dataset[0][0]).shape[0]
    assert (pixels(one)[:, : 2 * side] != pixels(other)[:, : 2 * side]).mean() < 0.02  # verdicts alone may differ


def test_tiles_show_patches():
    image = torch.full((3, 64, 64), 120, dtype=torch.uint8)
    shown = picture(image)
    assert shown.shape == (192, 192, 3)
    assert picture(torch.zeros(3, 224, 224, dtype=torch.uint8)).shape == (224, 224, 3)
    assert picture(torch.zeros(3, 336, 336, dtype=torch.uint8)).shape == (256, 256, 3)
    mask = torch.zeros(2, 2, dtype=torch.bool)
    mask[0, 1] = True
    gone = blanked(shown, mask)
    assert (gone[:96, 96:] == GREY).all() and (gone[96:] == 120).all() and (gone[:96, :96] == 120).all()
    lines = hatched(shown, mask)
    assert (lines[:96, 96:] != 120).all() and (lines[96:] == 120).all() and (lines[:96, :96] == 120).all()
    edge = outlined(shown, mask, (1, 2, 3), width=1)
    assert (edge != shown).any(-1).sum() == 4 * 96 - 4
    hot = heat(shown, mask.float()).astype(int)
    assert hot[0, 191].sum() > hot[0, 0].sum() and hot[0, 191, 0] > hot[0, 191, 2]  # yellow is lighter than blue


def test_captions_stay_in_their_column():
    """A name of any length leaves the pixels right of its tile alone."""
    tile = picture(torch.zeros(3, 48, 48, dtype=torch.uint8))
    short, long = (
        np.asarray(sheet("t", [Column("a"), Column("b")], [[Tile(tile, text), Tile(tile)]]))
        for text in ("a", "word " * 20)
    )
    right = short.shape[1] // 2
    assert (short[:, right:] == long[:, right:]).all() and (short != long).any()


@pytest.mark.slow
def test_a_run_leaves_its_gallery(tmp_path, monkeypatch):
    """A picture of every set but the hold-out, whatever the method; the same images each time."""
    for name in ("ROBUSTFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    settings = """model.pretrained=null data.train_images=64 data.holdout=16 data.test_images=24 data.batch_size=24
        trainer=cpu trainer.max_steps=1 trainer.enable_progress_bar=false trainer.enable_checkpointing=false
        logger=none""".split()

    def run(name: str, *more: str) -> list[str]:
        typed = [*settings, *more]
        cfg = compose.compose_first(compose.parse(typed))
        with open_dict(cfg):
            cfg.pop("hydra")
        run_in(cfg, tmp_path / name, list(more))
        assert json.loads((tmp_path / name / "results.json").read_text())["schema"] == 2
        return sorted(path.name for path in (tmp_path / name).glob("gallery/*"))

    sets = ("scenes", "scenes_a", "scenes_objectnet", "scenes_r", "scenes_sketch", "scenes_v2")
    assert run("masked") == [f"{name}.png" for name in sets]
    others = {
        "random": ("seed=1", "mask=random", "fill=none"),
        "unmasked": ("mask=none",),
        "vanilla": ("method=finetune",),
        "probe": ("method=linear_probe",),
        "zeroshot": ("method=zeroshot",),
    }
    one = pixels(tmp_path / "masked" / "gallery" / "scenes.png")
    for name, more in others.items():
        assert run(name, *more) == [f"{name}.png" for name in sets]
        other = pixels(tmp_path / name / "gallery" / "scenes.png")
        assert (one[70:, :160] == other[70:, :160]).all()  # the column of the images
        assert (other.shape[1] < one.shape[1]) == (name == "zeroshot")  # the column of one model, not of two
