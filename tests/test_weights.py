"""Weights in and out: OpenAI's, open_clip's and our own files; the zero-shot head."""

import json
import os
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import robustft
from robustft.common.errors import UserError
from robustft.models import tiny
from robustft.models.weights import create_clip, load_classifier, read_state, save_classifier
from robustft.models.zeroshot import text_rows, zeroshot_classifier
from tests.small import do, work  # noqa: F401 (a fixture)

CLASSES = ["fish", "boat", "tree"]
TEMPLATES = ["a photo of a {}", "a sketch of a {} on the grass"]


def make(pretrained: str | None, **options) -> "robustft.models.classifier.Classifier":  # noqa: F821
    options = {"tokenizer": tiny.tokenizer()} | options
    return zeroshot_classifier("tiny", pretrained, CLASSES, TEMPLATES, **options)


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    return create_clip("tiny", None, seed=3)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def torchscript(path: Path, clip: nn.Module) -> Path:
    """An archive as OpenAI's: parameters in half precision under CLIP's names, sizes beside them, code in it."""

    class Archive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    archive = Archive()
    for name, value in clip.state_dict().items():
        holder = archive
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(holder, parent):
                holder.add_module(parent, nn.Module())
            holder = getattr(holder, parent)
        holder.register_buffer(leaf, value.half())
    for name, size in {"input_resolution": 64, "context_length": 12, "vocab_size": 64}.items():
        archive.register_buffer(name, torch.tensor(size))
    torch.jit.save(torch.jit.trace(archive, torch.zeros(1)), path)
    return path


def quick_tiny(folder: Path) -> str:
    """A model of open_clip's that differs from the tiny one by its activation, as ViT-B-32-quickgelu does."""
    config = json.loads((Path(tiny.__file__).parent / "tiny.json").read_text())
    (folder / "tiny-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(folder / "tiny-quickgelu.json")
    return "tiny-quickgelu"


@pytest.mark.parametrize("kind", ["openai", "plain", "checkpoint", "safetensors"])
def test_weights_files_of_others(kind: str, tmp_path: Path, clip: nn.Module) -> None:
    state = clip.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "openai":
        torchscript(path, clip)
    elif kind == "plain":
        torch.save(state, path)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        save_file(state, path)
    architecture = quick_tiny(tmp_path) if kind == "openai" else "tiny"
    loaded = create_clip(architecture, str(path), seed=0).state_dict()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        expected = value.half().float() if kind == "openai" else value
        assert torch.equal(loaded[name], expected), name
        assert loaded[name].dtype == torch.float32


def test_our_own_file_comes_back_bit_for_bit(tmp_path: Path, images: Tensor) -> None:
    model = make(None, seed=1)
    path = tmp_path / "model.safetensors"
    save_classifier(path, model, CLASSES)
    again = robustft.load(path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(again(images), model(images))
    assert again.preprocess == model.preprocess
    as_pretrained = make(str(path))  # the head comes with it: no text is encoded
    assert torch.equal(as_pretrained(images), model(images))


def test_the_encoder_is_open_clips_own(images: Tensor) -> None:
    model = make(None, seed=1)
    theirs = open_clip.create_model("tiny", load_weights=False).eval()
    theirs.visual.load_state_dict(model.visual.state_dict(), strict=True)
    torch.testing.assert_close(model.encode(images), theirs.encode_image(images), rtol=1e-5, atol=1e-5)


def test_the_head_of_the_shortened_text_tower_is_that_of_the_whole(clip: nn.Module, tmp_path: Path) -> None:
    whole = open_clip.build_zero_shot_classifier(clip, tiny.tokenizer(), CLASSES, TEMPLATES).T
    rows = text_rows(clip, tiny.tokenizer(), CLASSES, TEMPLATES, cache=tmp_path)
    torch.testing.assert_close(rows, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    (kept,) = tmp_path.glob("*.safetensors")

    def unreachable(_: list[str]) -> Tensor:
        raise AssertionError("the head was made again")

    class Tokens:
        calls = 0

        def __call__(self, texts: list[str]) -> Tensor:
            self.calls += 1
            return tiny.tokenizer()(texts) if self.calls == 1 else unreachable(texts)  # once, for the fingerprint

    assert torch.equal(text_rows(clip, Tokens(), CLASSES, TEMPLATES, cache=tmp_path), rows)
    text_rows(clip, tiny.tokenizer(), CLASSES[:2], TEMPLATES, cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 and kept.exists()


def test_a_head_without_text_is_seeded_and_of_unit_rows() -> None:
    one, same, other = make(None, seed=1), make(None, seed=1), make(None, seed=2)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    scale = 1 / 0.07
    torch.testing.assert_close(one.head.weight.norm(dim=1), torch.full((3,), scale), rtol=1e-4, atol=0)
    assert not one.head.bias.any()


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_files_that_are_refused(tmp_path: Path, clip: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(path: Path, *words: str) -> None:
        with pytest.raises(UserError) as error:
            create_clip("tiny", str(path), seed=0)
        assert all(word in str(error.value) for word in (str(path), *words)), error.value
        assert "\n" not in str(error.value)

    pickled = tmp_path / "code.pt"
    torch.save({"state_dict": clip.state_dict(), "args": Code()}, pickled)
    refused(pickled, "not loaded")
    assert "must not run" not in capsys.readouterr().out
    cut = tmp_path / "cut.safetensors"
    save_file(clip.state_dict(), cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    refused(cut, "not a readable weights file")
    other = tmp_path / "other.safetensors"
    save_file({**clip.state_dict(), "visual.proj": torch.zeros(5, 5)}, other)
    refused(other, "visual.proj", "(5, 5)", "(72, 96)")
    less = tmp_path / "less.safetensors"
    save_file({name: value for name, value in clip.state_dict().items() if name != "visual.proj"}, less)
    refused(less, "visual.proj is missing")
    with pytest.raises(UserError, match="unknown to open_clip. Nearest: ViT-B-32"):
        create_clip("ViT-B-33", None, seed=0)


def test_a_model_for_something_else_is_refused(tmp_path: Path, clip: nn.Module) -> None:
    model = make(None, seed=1)
    path = tmp_path / "model.safetensors"
    save_classifier(path, model, CLASSES)
    with pytest.raises(UserError, match="made for 3 classes"):
        load_classifier(path, classes=["one", "two"])
    others = tmp_path / "clip.safetensors"
    save_file(clip.state_dict(), others)
    with pytest.raises(UserError, match="not a model left by a run"):
        robustft.load(others)
    with pytest.raises(UserError, match="no such file or folder. Expected the folder of a run"):
        robustft.load(tmp_path / "nothing.safetensors")


def test_damaged_files_are_told_from_those_with_code(tmp_path: Path) -> None:
    torch.save(create_clip("tiny", None, seed=0).state_dict(), tmp_path / "whole.pt")
    contents = {
        "noise.pt": os.urandom(3000),
        "noise.safetensors": os.urandom(3000),
        "text.pt": b"hello there",
        "empty.pt": b"",
        "cut.pt": (tmp_path / "whole.pt").read_bytes()[:-4000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a readable weights file"):
            read_state(tmp_path / name)
    torch.save({"epoch": 1}, tmp_path / "nothing.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state(tmp_path / "nothing.pt")


@pytest.mark.slow
def test_what_a_run_leaves_starts_other_runs(work: Path) -> None:  # noqa: F811
    first = do(work / "first", "method=finetune")
    left = work / "first" / "model.safetensors"
    scores = [first[name] for name in ("id", "ood", "holdout")]
    again = do(work / "again", "method=evaluate", f"checkpoint={left}")
    as_it_is = do(work / "as_it_is", "method=zeroshot", f"model.pretrained={left}")  # with its head
    for record in (again, as_it_is):
        assert [record[name] for name in ("id", "ood", "holdout")] == scores
    for name in ("model.pretrained", "init", "teacher"):
        do(work / name, f"{name}={left}", "trainer.max_steps=1")
