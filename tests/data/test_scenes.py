"""The embedded benchmark: rendered sets, their data module, the shipped small CLIP."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from robustft.cli import compose
from robustft.common.errors import UserError
from robustft.data.scenes import ScenesData
from robustft.data.scenes.captions import TEMPLATES, captions, vocabulary
from robustft.data.scenes.datamodule import EVALUATION_SETS, SceneImages
from robustft.data.scenes.generate import generate
from robustft.data.scenes.recipes import (
    CLASSES,
    CLUTTER,
    CONTEXTS,
    PRETRAINING,
    RENDITIONS,
    SETS,
    SKETCHES,
    STYLES,
    VERSION,
    draw,
    poisson,
)
from robustft.data.scenes.retention import retention_task
from robustft.data.sets import Preprocess
from robustft.models import tiny
from robustft.models.tokenizer import WordTokenizer

PREPROCESS = Preprocess(64, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def rendered(name="scenes", count=48, size=64, seed=3, recipe=None):
    return generate(recipe or SETS[name], count, size=size, seed=seed, name=name)


def scenes_data(tmp_path, **arguments):
    common = dict(preprocess=PREPROCESS, seed=0, batch_size=16, eval_batch_size=50, root=tmp_path)
    return ScenesData(**(common | dict(train_images=64, test_images=32) | arguments))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# The pictures


def test_the_same_bytes_again_and_for_any_count_and_number_of_threads():
    once = rendered("scenes_r", 300)
    assert same(once, rendered("scenes_r", 300))
    assert same([column[:40] for column in once], rendered("scenes_r", 40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert same(once, rendered("scenes_r", 300))
    finally:
        torch.set_num_threads(threads)


def test_seeds_and_sets_are_different_draws():
    assert not torch.equal(rendered(seed=3).images, rendered(seed=4).images)
    assert not torch.equal(rendered("train").images, rendered("scenes").images)


@pytest.mark.parametrize("size", [24, 48, 64])
def test_shapes_and_types(size):
    scenes = rendered(count=20, size=size)
    assert scenes.images.shape == (20, 3, size, size) and scenes.images.dtype == torch.uint8
    assert scenes.masks.shape == (20, size, size) and scenes.masks.dtype == torch.bool


@pytest.mark.parametrize("name", list(SETS))
def test_every_object_is_seen_and_has_a_plausible_size(name):
    area = rendered(name, 256).masks.float().mean((1, 2))
    assert area.min() > 0.01
    assert area.max() < 0.9
    assert 0.15 < area.mean() < 0.4  # objects fill the picture, as ImageNet's do


def test_masks_are_where_the_object_is():
    """Without texture, noise or anything else in the picture, object pixels differ from the background."""
    plain = replace(SETS["scenes"], noise=0.0, clutter=1e-9, front=0.0, dim=0.0, blur=0.0, veil=0.0)
    scenes = rendered(count=256, recipe=replace(plain, home=1.0))
    images, masks = scenes.images.float(), scenes.masks[:, None].float()
    inside = (images * masks).sum((2, 3)) / masks.sum((2, 3))
    outside = (images * (1 - masks)).sum((2, 3)) / (1 - masks).sum((2, 3))
    assert (inside - outside).abs().amax(1).median() > 40


def test_something_in_front_hides_a_part_of_the_mask():
    shown, hidden = (rendered(recipe=replace(SETS["scenes"], front=front)).masks for front in (0.0, 1.0))
    assert not (hidden & ~shown).any()
    assert hidden.sum() < 0.9 * shown.sum()


# What is drawn


def factors(name, count=4000, recipe=None):
    return draw(recipe or SETS[name], range(count), 8, 5, name)


def test_classes_are_balanced():
    counts = rendered("train", 100).labels.bincount()
    assert len(counts) == len(CLASSES) and counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("name", "correlation"), [("train", 0.93), ("scenes_v2", 0.73), ("scenes_r", 0.3)])
def test_classes_are_at_home_as_often_as_asked(name, correlation):
    scenes = factors(name)
    at_home = (scenes.context == scenes.label // 2).float().mean().item()
    assert at_home == pytest.approx(correlation + (1 - correlation) / len(CONTEXTS), abs=0.025)


def test_the_adversarial_set_is_never_at_home_and_has_all_other_contexts():
    scenes = factors("scenes_a")
    assert not (scenes.context == scenes.label // 2).any()
    assert len({*zip(scenes.context.tolist(), scenes.label.tolist(), strict=True)}) == len(CLASSES) * 7


def test_pretraining_factors_are_independent():
    scenes = factors("pretraining", recipe=PRETRAINING)
    for factor, values in ((scenes.context, len(CONTEXTS)), (scenes.style, len(STYLES)), (scenes.colour, 12)):
        joint = torch.zeros(len(CLASSES), values).index_put_((scenes.label, factor), torch.ones(4000), accumulate=True)
        expected = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True) / 4000
        freedom = (len(CLASSES) - 1) * (values - 1)
        chi_squared = ((joint - expected).square() / expected).sum().item()
        assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


def test_styles_of_the_sets():
    assert (factors("scenes_objectnet").style == STYLES.index("photo")).all()
    for name, kinds in (("scenes_sketch", SKETCHES), ("scenes_r", RENDITIONS)):
        counts = factors(name).style.bincount(minlength=len(STYLES))
        assert [STYLES[k] for k in counts.nonzero()[:, 0]] == list(kinds)
        assert counts[counts > 0].min() > 0.8 * 4000 / len(kinds)  # no kind decides


def test_clutter_is_poisson():
    counts = poisson(torch.linspace(0.0005, 0.9995, 1000), 2.0)
    assert counts.float().mean() == pytest.approx(2.0, abs=0.03) and counts.max() == CLUTTER


# The data module


def test_sets_in_order_and_loaders(tmp_path):
    data = scenes_data(tmp_path, holdout=16)
    data.setup()
    assert [s.name for s in data.sets] == ["holdout", *EVALUATION_SETS]
    assert data.train_images == 48 and data.num_classes == 16
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (16, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert all(s.correct.equal(torch.eye(16, dtype=torch.bool)) for s in data.sets)
    images = data.sets[1].dataset
    assert isinstance(images, SceneImages) and images.masks.shape == (32, 64, 64)


def test_the_cache_gives_the_same_images_and_survives_damage(tmp_path):
    first = scenes_data(tmp_path).training_set()
    (path,) = tmp_path.glob("train-*.safetensors")
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    assert torch.equal(scenes_data(tmp_path).training_set().images, first.images)
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(scenes_data(tmp_path).training_set().images, first.images)
    assert path.stat().st_size > 1000


def test_a_folder_that_cannot_be_written_to_does_not_stop_the_run(tmp_path):
    (tmp_path / "file").touch()
    assert len(scenes_data(tmp_path / "file").training_set()) == 64


def test_the_correlation_is_a_knob_of_training_id_and_v2(tmp_path):
    given, other = scenes_data(tmp_path), scenes_data(tmp_path, correlation=0.0)
    for name in ("scenes", "scenes_v2"):
        home = [{s.name: s for s in data.evaluation_sets()}[name].dataset.scenes for data in (given, other)]
        at_home = [(scenes.contexts == scenes.labels // 2).float().mean() for scenes in home]
        assert at_home[0] > 0.5 > 0.4 > at_home[1]
    unchanged = [data.evaluation_sets()[-1].dataset.images for data in (given, other)]
    assert torch.equal(*unchanged)


def test_another_resolution_of_the_model_is_resized_to(tmp_path):
    images = scenes_data(tmp_path, preprocess=replace(PREPROCESS, size=32)).training_set()
    assert images[5][0].shape == (3, 32, 32)
    assert images.__getitems__([1, 2]).images.shape == (2, 3, 32, 32)


def test_a_set_can_be_left_out(tmp_path):
    data = scenes_data(tmp_path, sets={"scenes_r": False, "scenes_a": None})
    assert [s.name for s in data.evaluation_sets()] == [n for n in EVALUATION_SETS if n != "scenes_r"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"correlation": 1.5}, "data.correlation=1.5"),
        ({"train_images": 3}, "data.train_images=3"),
        ({"test_images": 0}, "data.test_images=0"),
        ({"image_size": 8}, "data.image_size=8"),
        ({"image_size": 4000}, "data.image_size=4000"),
        ({"data_seed": -1}, "data.data_seed=-1"),
        ({"sets": {"scenes_x": False}}, "data.sets.scenes_x"),
        ({"sets": {"scenes_r": "some/folder"}}, "data.sets.scenes_r"),
        ({"sets": {"scenes": False}}, "data.sets.scenes"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, named):
    with pytest.raises(UserError, match=named):
        scenes_data(tmp_path, **arguments)


# Words


def test_the_end_of_a_text_has_the_highest_id():
    tokenizer = tiny.tokenizer()
    tokens = tokenizer(["a photo of a key.", "key"])
    assert tokens.shape == (2, 12) and tokens.dtype == torch.int64
    assert tokens.argmax(1).tolist() == [6, 2] and tokens.max() == tokenizer.vocab_size - 1
    assert tokens[1].tolist() == [1, tokenizer.words["key"], tokenizer.end, *[0] * 9]


def test_case_and_punctuation_do_not_matter():
    tokenizer = tiny.tokenizer()
    assert torch.equal(tokenizer("A photo of a Key!"), tokenizer(["a photo of a key"]))


def test_words_and_lengths_it_cannot_take_are_named():
    tokenizer = WordTokenizer(["a", "key"], context_length=4)
    with pytest.raises(UserError, match="'zebra'"):
        tokenizer("a zebra")
    with pytest.raises(UserError, match="at most 2"):
        tokenizer("a key key")


def test_every_caption_and_prompt_can_be_tokenized():
    tokenizer = tiny.tokenizer()
    scenes = rendered("pretraining", 256, recipe=PRETRAINING)
    texts = captions(scenes, range(256), torch.Generator().manual_seed(0))
    assert len(set(texts)) > 200
    tokenizer(texts)
    tokenizer([template.format(name) for template in TEMPLATES for name in CLASSES])


def test_the_shipped_vocabulary_is_that_of_the_captions():
    assert list(tiny.tokenizer().words) == vocabulary()
    config = json.loads((tiny.HERE / f"{tiny.ARCHITECTURE}.json").read_text())
    assert config["text_cfg"]["vocab_size"] == tiny.tokenizer().vocab_size
    assert config["text_cfg"]["context_length"] == tiny.tokenizer().context_length


# The shipped weights


@pytest.fixture(scope="module")
def clip():
    tiny.register()
    model = open_clip.create_model(tiny.ARCHITECTURE, load_weights=False)
    model.load_state_dict({k: v.float() for k, v in load_file(tiny.WEIGHTS).items()}, strict=True)
    return model.eval()


def test_the_shipped_weights_fit_and_are_small(clip):
    assert tiny.WEIGHTS.stat().st_size <= 8e6
    assert all(parameter.isfinite().all() for parameter in clip.parameters())


@torch.inference_mode()
def test_zero_shot_accuracy_of_the_shipped_weights(clip):
    head = open_clip.build_zero_shot_classifier(clip, tiny.tokenizer(), CLASSES, TEMPLATES)
    accuracy = {}
    for name in EVALUATION_SETS:
        scenes = rendered(name, 640, seed=1)
        features = clip.encode_image(PREPROCESS.normalise(scenes.images), normalize=True)
        accuracy[name] = ((features @ head).argmax(1) == scenes.labels).double().mean().item()
    assert accuracy.pop("scenes") >= 0.60
    assert sum(accuracy.values()) / len(accuracy) >= 0.55


# What else it shows


def test_the_version_of_the_pictures_is_that_of_the_config():
    assert compose.compose_first(compose.parse(["data=scenes"])).data.takes.benchmark == VERSION


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kinds"), [("context", CONTEXTS), ("style", STYLES)])
def test_what_fine_tuning_never_asks_for(tmp_path, task, kinds):
    made = retention_task(task, 64, images=320, root=tmp_path)
    assert made.name == task and len(made.class_names) == len(kinds)
    scenes = rendered("retention", 320, seed=0, recipe=PRETRAINING)
    assert torch.equal(made.images.dataset.labels, {"context": scenes.contexts, "style": scenes.styles}[task])
    assert torch.equal(made.images.dataset.images, scenes.images)
    assert not torch.equal(scenes.images, rendered("pretraining", 320, seed=0, recipe=PRETRAINING).images)
    tiny.tokenizer()([template.format(name) for template in made.templates for name in made.class_names])
    counts = made.images.dataset.labels.bincount(minlength=len(kinds))
    assert counts.min() > 0
