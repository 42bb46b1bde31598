"""A text tower goes with a model: a frozen one is named and found again, a trained one lies in the file."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import robustft
from robustft.common.errors import UserError
from robustft.models import tiny
from robustft.models.classifier import Classifier
from robustft.models.text import TextSource, digest_of, without_visual
from robustft.models.weights import create_clip, load_classifier, save_classifier, text_tower
from robustft.models.zeroshot import open_clip_tokenizer, zeroshot_classifier
from tests.small import do, work  # noqa: F401 (a fixture)

CLASSES = ["fish", "boat", "tree"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zeroshot(pretrained: str | None) -> Classifier:
    return zeroshot_classifier("tiny", pretrained, CLASSES, ["a photo of a {}."], tokenizer=tiny.tokenizer())


def saved(model: Classifier, path: Path) -> Path:
    save_classifier(path / "model.safetensors", model, CLASSES)
    return path


def same(tower: torch.nn.Module, clip: torch.nn.Module) -> bool:
    ours, theirs = tower.state_dict(), clip.state_dict()
    return set(ours) == {name for name in theirs if not name.startswith("visual.")} and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def test_a_frozen_one_is_named_and_found(tmp_path: Path) -> None:
    folder = saved(zeroshot("embedded"), tmp_path / "run")
    with safe_open(folder / "model.safetensors", "pt") as file:
        named = json.loads(file.metadata()["text"])
        assert not any("transformer" in name and not name.startswith("visual.") for name in file.keys())  # noqa: SIM118
    clip = create_clip("tiny", "embedded", 0)
    assert named == {"architecture": "tiny", "pretrained": "embedded", "sha256": digest_of(clip)}
    assert same(text_tower(robustft.load(folder)), clip)


def test_the_digest_is_of_the_text_tower_alone() -> None:
    one, other = create_clip("tiny", None, 0), create_clip("tiny", None, 0)
    first = digest_of(one)
    with torch.no_grad():
        other.visual.proj.add_(1)  # the image tower, and the scale of both, are other questions
        other.logit_scale.add_(1)
    assert digest_of(other) == first == digest_of(without_visual(other))
    with torch.no_grad():
        other.ln_final.bias[0] += 1e-6
    assert digest_of(other) != first


def test_that_of_a_file_is_found_where_it_was_or_beside_the_model(tmp_path: Path, cache: Path) -> None:
    clip = create_clip("tiny", None, 5)
    weights = tmp_path / "weights" / "mine.safetensors"
    weights.parent.mkdir()
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, weights)
    folder = saved(zeroshot(str(weights)), tmp_path / "run")
    text = robustft.load(folder).architecture.text
    assert text is not None and (text.pretrained, text.sha256) == ("mine.safetensors", digest_of(clip))
    assert str(tmp_path).encode() not in (folder / "model.safetensors").read_bytes()  # where it lay is no part of it
    assert same(text_tower(robustft.load(folder)), clip)  # the cache knows where it was
    weights.rename(folder / "mine.safetensors")
    with pytest.raises(UserError) as error:
        text_tower(robustft.load(folder))
    message = str(error.value)
    assert "the text tower of this model was that of mine.safetensors" in message and "not there any more" in message
    assert "\n" not in message and "model.pretrained=FILE" in message and text.sha256[:12] in message
    assert same(text_tower(robustft.load(folder), near=[folder]), clip)
    shutil.rmtree(cache)
    assert same(text_tower(robustft.load(folder), near=[folder / "mine.safetensors"]), clip)
    other = create_clip("tiny", None, 6).state_dict()
    save_file({name: value.contiguous() for name, value in other.items()}, folder / "mine.safetensors")
    with pytest.raises(UserError, match="what lies there now is another one"):
        text_tower(robustft.load(folder), near=[folder])


def test_equal_models_of_files_in_other_places_are_equal_files(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in create_clip("tiny", None, 5).state_dict().items()}
    files = []
    for place in "ab":
        (tmp_path / place).mkdir()
        save_file(state, tmp_path / place / "mine.safetensors")
        folder = saved(zeroshot(str(tmp_path / place / "mine.safetensors")), tmp_path / f"run_{place}")
        files.append((folder / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_random_weights_have_none(tmp_path: Path) -> None:
    model = robustft.load(saved(zeroshot(None), tmp_path))
    assert model.architecture.text is None and model.text is None
    with pytest.raises(UserError, match="tiny goes with no text tower: it has none, or its weights are random"):
        text_tower(model)


def test_a_trained_one_is_saved_under_open_clips_names(tmp_path: Path) -> None:
    model = zeroshot("embedded")
    clip = create_clip("tiny", None, 9)
    whole = {**clip.state_dict(), **{f"visual.{k}": v for k, v in model.visual.state_dict().items()}}
    model.text = without_visual(create_clip("tiny", None, 9))
    folder = saved(model, tmp_path / "run")
    state = load_file(folder / "model.safetensors")
    head = {name: state.pop(name) for name in ("head.weight", "head.bias")}
    assert torch.equal(head["head.weight"], model.head.weight)
    again = open_clip.create_model("tiny", load_weights=False)
    again.load_state_dict(state, strict=True)  # both towers, as open_clip has them
    assert all(torch.equal(value, whole[name]) for name, value in again.state_dict().items())
    loaded = load_classifier(folder)
    assert same(text_tower(loaded), clip) and loaded.text is text_tower(loaded)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_siglips_is_saved_under_open_clips_names_too(tmp_path: Path) -> None:
    """There the text tower has a name of its own, ``text.``, which is the one that a trained tower has in ours."""
    from robustft.models.text import own_names, saved_names

    names = {"visual.a": torch.zeros(1), "head.weight": torch.zeros(1), "text.text.b": torch.zeros(1)}
    names["text.logit_scale"] = torch.zeros(1)
    assert set(saved_names(names)) == {"visual.a", "head.weight", "text.b", "logit_scale"}
    assert set(own_names(saved_names(names))) == set(names)


@pytest.mark.slow
def test_a_run_that_starts_from_another_runs_model_knows_its_text_tower(work: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("ROBUSTFT_CACHE", str(work / "cache"))
    knowing = ["optimizer.lr=0.01", "data.test_images=24", "metric=top1", "retain.style=false"]
    first = do(work / "first", "method=finetune", "model.pretrained=embedded", *knowing)
    second = do(work / "second", "method=finetune", f"model.pretrained={work}/first", *knowing)
    assert second["retention"]["context"]["zeroshot_top1"] == first["retention"]["context"]["top1"]
    again = robustft.load(work / "second").architecture.text
    assert again == robustft.load(work / "first").architecture.text and isinstance(again, TextSource)


@pytest.mark.slow
def test_older_files_have_no_name_of_it(work: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("ROBUSTFT_CACHE", str(work / "cache"))
    knowing = ["data.test_images=24", "metric=top1"]
    do(work / "older", "method=finetune", "model.pretrained=embedded", *knowing)
    path = work / "older" / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "text"}
    save_file(load_file(path), path, metadata)
    assert do(work / "of_older", "method=finetune", f"model.pretrained={work}/older", *knowing)["retention"] is None
    (work / "pets").mkdir()
    with pytest.raises(UserError, match=r"retain.pets: nothing says which text tower goes with model.pretrained="):
        do(work / "bad", "method=finetune", f"model.pretrained={work}/older", f"retain.pets={work}/pets")


def test_open_clips_tokenizer_is_found_by_the_models_name() -> None:
    tokens = open_clip_tokenizer("ViT-B-32-quickgelu")(["a photo of a dog"])
    assert tokens.shape == (1, 77) and torch.equal(tokens, open_clip.get_tokenizer("ViT-B-32")(["a photo of a dog"]))
