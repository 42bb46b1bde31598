"""`checkpoint=FILE` with what wise-ft, model soups, FLYP and open_clip leave: the numbers that their own code gives."""

import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustft.common.errors import UserError
from robustft.models import pickled, tiny
from robustft.models.reading import read_state
from robustft.models.weights import create_clip
from tests.small import do, prepared, work  # noqa: F401 (a fixture)

CLASSES = 16


@pytest.fixture(scope="module")
def clip() -> Any:
    """A CLIP that has been fine-tuned elsewhere."""
    made = create_clip("tiny", "embedded", 0)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=random)
    return made


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class ImageEncoder(nn.Module):
    """As wise-ft's: CLIP without the blocks of its text tower; and as FLYP's, with them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.preprocess, self.cache_dir = model, re.compile, None


class ImageClassifier(nn.Module):
    """As wise-ft's: an encoder, and a linear head on features of length 1."""

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.image_encoder, self.classification_head = encoder, head


def theirs(clip: Any) -> ImageClassifier:
    encoder = ImageEncoder(create_clip("tiny", None, 0))
    encoder.model.load_state_dict(clip.state_dict())
    del encoder.model.transformer
    head = nn.Linear(96, CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.randn(CLASSES, 96, generator=torch.Generator().manual_seed(1)) * 14)
    return ImageClassifier(encoder, head)


def by_their_code(clip: Any, weight: Tensor, bias: Tensor, images: Tensor) -> Tensor:
    with torch.no_grad():
        features = clip.encode_image(images)
        return features / features.norm(dim=-1, keepdim=True) @ weight.T + bias


def loaded(folder: Path, path: Path, images: Tensor) -> Tensor:
    """Logits of the model of `checkpoint=path`."""
    run = prepared(folder, "method=evaluate", f"checkpoint='{path}'")
    with torch.no_grad():
        return run["checkpoint"](images)


@pytest.mark.parametrize("kind", ["state dict", "soup", "safetensors", "pickled", "saved whole"])
def test_an_image_tower_with_a_head(kind: str, clip: Any, images: Tensor, tmp_path: Path) -> None:
    model, path = theirs(clip), tmp_path / "model.pt"
    state = model.state_dict()
    if kind == "state dict":
        torch.save(state, path)
    elif kind == "soup":  # ModelWrapper of model-soups, under DataParallel
        torch.save({f"module.{name.removeprefix('image_encoder.')}": value for name, value in state.items()}, path)
    elif kind == "safetensors":
        save_file(state, path := path.with_suffix(".safetensors"))
    elif kind == "pickled":
        path.write_bytes(pickle.dumps(model))
    else:
        torch.save(model, path)
    head = model.classification_head
    expected = by_their_code(clip, head.weight, head.bias, images)
    torch.testing.assert_close(loaded(tmp_path, path, images), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["FLYP", "FLYP's state dict", "open_clip", "open_clip's weights"])
def test_a_whole_clip_makes_its_head_by_its_text_tower(kind: str, clip: Any, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_9.pt"
    if kind == "FLYP":
        path.write_bytes(pickle.dumps(ImageEncoder(clip)))
    elif kind == "FLYP's state dict":
        torch.save(ImageEncoder(clip).state_dict(), path)
    elif kind == "open_clip":
        state = {f"module.{name}": value for name, value in clip.state_dict().items()}
        torch.save({"epoch": 9, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, path)
    else:
        save_file(clip.state_dict(), path := path.with_suffix(".safetensors"))
    data = prepared(tmp_path).data
    rows = open_clip.build_zero_shot_classifier(clip, tiny.tokenizer(), list(data.class_names), data.templates).T
    expected = by_their_code(clip, rows * clip.logit_scale.exp(), torch.zeros(CLASSES), images)
    torch.testing.assert_close(loaded(tmp_path, path, images), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.slow
def test_a_run_evaluates_it_and_leaves_a_model(clip: Any, work: Path) -> None:  # noqa: F811
    path = work / "theirs.pt"
    torch.save(theirs(clip).state_dict(), path)
    first = do(work / "theirs", "method=evaluate", f"checkpoint={path}")
    again = do(work / "again", "method=evaluate", f"checkpoint={work}/theirs")
    assert [again[name] for name in ("id", "ood", "holdout")] == [first[name] for name in ("id", "ood", "holdout")]
    started = do(work / "init", "method=finetune", f"init={path}", "trainer.max_steps=1")
    assert started["config"]["init"] == str(path)


def test_what_does_not_fit_is_named(clip: Any, images: Tensor, tmp_path: Path) -> None:
    state = theirs(clip).state_dict()
    visual = {name: value for name, value in clip.state_dict().items() if name.startswith("visual.")}
    fewer = {**state, "classification_head.weight": torch.zeros(5, 96), "classification_head.bias": torch.zeros(5)}
    cut = {name: value for name, value in state.items() if "visual.proj" not in name}
    for words, tensors in {
        "has a head for 5 classes, expected 16 (fish, boat, tree, …). Choose the data= it was made with": fewer,
        "holds an image tower alone": visual,
        "does not fit tiny: visual.proj is missing": cut,
        "holds no state dict": {},
    }.items():
        torch.save(tensors, tmp_path / "x.pt")
        with pytest.raises(UserError) as error:
            loaded(tmp_path, tmp_path / "x.pt", images)
        assert words in str(error.value) and "\n" not in str(error.value), error.value
    with pytest.raises(UserError, match="torch.Size|is \\(96|expected"):
        torch.save({**state, "image_encoder.model.visual.proj": torch.zeros(96, 8)}, tmp_path / "x.pt")
        loaded(tmp_path, tmp_path / "x.pt", images)


class Runs:
    """Would run when it is unpickled as pickle does it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_nothing_in_a_pickled_module_is_run(clip: Any, tmp_path: Path, capsys) -> None:
    module = ModuleType("somebodys")
    sys.modules["somebodys"] = module
    encoder = ImageEncoder(clip)
    encoder.extra, encoder.device, encoder.sizes = Runs(), torch.device("cpu"), [torch.Size([3]), {1, 2}]
    try:
        ImageEncoder.__module__, before = "somebodys", ImageEncoder.__module__
        module.ImageEncoder = ImageEncoder  # type: ignore[attr-defined]
        for path, save in ((tmp_path / "a.pt", lambda f: torch.save(encoder, f)), (tmp_path / "b.pt", None)):
            path.write_bytes(pickle.dumps(encoder)) if save is None else save(path)
    finally:
        ImageEncoder.__module__ = before
        del sys.modules["somebodys"]  # it cannot be imported any more, and does not have to be
    expected = clip.state_dict()
    for path in (tmp_path / "a.pt", tmp_path / "b.pt"):
        found = read_state(path)
        assert found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())
    assert "must not run" not in capsys.readouterr().out
    for content in ({"a": Runs()}, [1, 2], Runs()):
        (tmp_path / "c.pt").write_bytes(pickle.dumps(content))
        assert pickled.read_module(tmp_path / "c.pt") is None
    (tmp_path / "c.pt").write_bytes((tmp_path / "b.pt").read_bytes()[:-3000])
    with pytest.raises(UserError, match="c.pt"):
        read_state(tmp_path / "c.pt")
    assert "must not run" not in capsys.readouterr().out
