"""CLIP weights as others leave them: their names, their folders, what is known of their activation and transform."""

import json
import logging
import math
import pickle
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import robustft
from robustft.common.errors import UserError
from robustft.models import names, torchscript, weights
from robustft.models.files import model_files
from robustft.models.origin import twin
from robustft.models.weights import create_clip, load_classifier, save_classifier
from robustft.models.zeroshot import preprocess_of
from tests.small import do, work  # noqa: F401 (a fixture)
from tests.test_weights import CLASSES, make, quick_tiny
from tests.test_weights import torchscript as openai_archive

WIDTH, LAYERS, HEADS, EMBED, PATCH = 72, 4, 3, 96, 8  # of the tiny model
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, CONTEXT = 64, 2, 2, 12


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    return create_clip("tiny", None, seed=3)


def refused(path: Path, *words: str, architecture: str = "tiny") -> None:
    with pytest.raises(UserError) as error:
        create_clip(architecture, str(path), seed=0)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


# Hugging Face's CLIP, written down plainly from its own names


def hugging_face_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    state = {
        "logit_scale": torch.tensor(2.5),
        "visual_projection.weight": values(EMBED, WIDTH),
        "text_projection.weight": values(EMBED, TEXT_WIDTH),
        "vision_model.embeddings.class_embedding": values(WIDTH),
        "vision_model.embeddings.patch_embedding.weight": values(WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": values(65, WIDTH),
        "vision_model.embeddings.position_ids": torch.arange(65).unsqueeze(0),
        "text_model.embeddings.token_embedding.weight": values(64, TEXT_WIDTH),
        "text_model.embeddings.position_embedding.weight": values(CONTEXT, TEXT_WIDTH),
        "text_model.embeddings.position_ids": torch.arange(CONTEXT).unsqueeze(0),
    }
    norms = {"vision_model.pre_layrnorm": WIDTH, "vision_model.post_layernorm": WIDTH}
    norms["text_model.final_layer_norm"] = TEXT_WIDTH
    for tower, layers, width in (("vision_model", LAYERS, WIDTH), ("text_model", TEXT_LAYERS, TEXT_WIDTH)):
        for k in range(layers):
            block = f"{tower}.encoder.layers.{k}"
            norms |= {f"{block}.layer_norm1": width, f"{block}.layer_norm2": width}
            sizes = {f"self_attn.{part}_proj": (width, width) for part in ("k", "v", "q", "out")}
            sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            for name, size in sizes.items():
                state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"] = values(*size), values(size[0])
    for name, width in norms.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + values(width), values(width)
    return state


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def blocks(state: dict[str, Tensor], tower: str, x: Tensor, layers: int, heads: int, causal: bool) -> Tensor:
    hidden = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1) if causal else torch.zeros(1)
    for k in range(layers):
        name = f"{tower}.encoder.layers.{k}"
        seen = norm(state, f"{name}.layer_norm1", x)
        q, key, v = (
            linear(state, f"{name}.self_attn.{part}_proj", seen).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        attention = (q @ key.transpose(-2, -1) / q.shape[-1] ** 0.5 + hidden).softmax(-1)
        x = x + linear(state, f"{name}.self_attn.out_proj", (attention @ v).transpose(1, 2).flatten(2))
        inner = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.layer_norm2", x)))
        x = x + linear(state, f"{name}.mlp.fc2", inner)
    return x


def image_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    of_patches = F.conv2d(images, state["vision_model.embeddings.patch_embedding.weight"], stride=PATCH)
    first = state["vision_model.embeddings.class_embedding"].expand(len(images), 1, -1)
    x = torch.cat([first, of_patches.flatten(2).transpose(1, 2)], 1)
    x = norm(state, "vision_model.pre_layrnorm", x + state["vision_model.embeddings.position_embedding.weight"])
    x = blocks(state, "vision_model", x, LAYERS, HEADS, causal=False)
    return linear(state, "visual_projection", norm(state, "vision_model.post_layernorm", x[:, 0]))


def text_features(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    x = state["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + state["text_model.embeddings.position_embedding.weight"]
    x = norm(state, "text_model.final_layer_norm", blocks(state, "text_model", x, TEXT_LAYERS, TEXT_HEADS, causal=True))
    return linear(state, "text_projection", x[torch.arange(len(x)), tokens.argmax(-1)])


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module."])
def test_hugging_faces_names_are_read(wrapper: str, tmp_path: Path, images: Tensor) -> None:
    state = hugging_face_state()
    save_file({wrapper + name: value for name, value in state.items()}, tmp_path / "model.safetensors")
    read = create_clip("tiny", str(tmp_path), seed=0)  # the folder, as the hub's client leaves it
    tokens = torch.tensor([[1, 5, 9, 53, *[0] * 8], [2, 53, *[0] * 10]])
    with torch.no_grad():
        torch.testing.assert_close(read.encode_image(images), image_features(state, images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(read.encode_text(tokens), text_features(state, tokens), rtol=1e-4, atol=1e-4)
    assert read.logit_scale == 2.5
    del state["vision_model.encoder.layers.2.self_attn.k_proj.bias"]
    save_file(state, tmp_path / "model.safetensors")
    refused(tmp_path, "not whole", "layers.2.self_attn.k_proj.bias")


# The activation


def test_openais_archive_in_a_model_with_gelu_is_refused(tmp_path: Path, clip: nn.Module, caplog) -> None:
    right, path = quick_tiny(tmp_path), openai_archive(tmp_path / "openai.pt", clip)
    refused(path, "quick-GELU", f"model.architecture={right}")
    with caplog.at_level(logging.INFO, "robustft"):
        create_clip(right, str(path), seed=0)
    assert not caplog.records
    # the same state dict saved anew still has OpenAI's sizes in it
    torch.save(torch.jit.load(path).state_dict(), tmp_path / "again.pt")
    refused(tmp_path / "again.pt", "quick-GELU", right)


def test_what_a_file_does_not_tell_is_said(tmp_path: Path, clip: nn.Module, caplog) -> None:
    right, path = quick_tiny(tmp_path), tmp_path / "weights.safetensors"
    save_file(clip.state_dict(), path)
    for architecture, used, other in (("tiny", "GELU", right), (right, "quick-GELU", "tiny")):
        caplog.clear()
        with caplog.at_level(logging.INFO, "robustft"):
            create_clip(architecture, str(path), seed=0)
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"{path}: nothing in it tells the activation; {architecture} uses {used}" in line
        assert line.endswith(f"choose model.architecture={other}") and "\n" not in line
    caplog.clear()
    create_clip("tiny", "embedded", seed=0)  # ours: nothing to say
    assert not caplog.records


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [("ViT-B-32", "openai"), ("ViT-B-16", "dfn2b"), ("ViT-L-14", "metaclip_400m"), ("ViT-L-14-336", "openai")],
)
def test_tags_of_another_activation_are_refused_before_a_download(architecture: str, tag: str, monkeypatch) -> None:
    monkeypatch.setattr(weights, "reachable", lambda *_, **__: pytest.fail("it goes to the network"))
    with pytest.raises(
        UserError, match=f"choose model.architecture={architecture}-quickgelu|Choose model.architecture="
    ):
        create_clip(architecture, tag, seed=0)
    assert twin(architecture) == f"{architecture}-quickgelu" and twin(f"{architecture}-quickgelu") == architecture


def test_descriptions_beside_the_weights_are_used(tmp_path: Path, clip: nn.Module, caplog) -> None:
    right = quick_tiny(tmp_path)
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    images = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    description = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": images}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    refused(folder, "open_clip_config.json", right)
    create_clip(right, str(folder), seed=0)
    found = preprocess_of(right, str(folder))
    assert (found.mean, found.std, found.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bilinear")
    folder = tmp_path / "hugging_face"
    folder.mkdir()
    save_file(hugging_face_state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "gelu"}}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "resample": 2}))
    refused(folder, "trained with GELU", "config.json", architecture=right)
    create_clip("tiny", str(folder), seed=0)
    found = preprocess_of("tiny", str(folder / "model.safetensors"))
    assert (found.mean, found.std, found.interpolation) == ((0.5,) * 3, open_clip.OPENAI_DATASET_STD, "bilinear")
    assert preprocess_of("tiny", str(tmp_path / "other.pt")).mean == open_clip.OPENAI_DATASET_MEAN


def test_models_of_another_activation_or_transform_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    model, path = make(None, seed=1), tmp_path / "model.safetensors"
    architecture = model.architecture
    same = {**architecture.config, "quick_gelu": False}
    model.architecture = replace(architecture, config=same)
    save_classifier(path, model, CLASSES)
    assert load_classifier(path, like=make(None, seed=2), classes=CLASSES)
    model.architecture = replace(architecture, config={**same, "quick_gelu": True})
    save_classifier(path, model, CLASSES)
    with pytest.raises(UserError, match="quick-GELU"):
        load_classifier(path, like=make(None, seed=2))
    model.architecture = replace(architecture, preprocess=replace(architecture.preprocess, mean=(0.5, 0.5, 0.5)))
    save_classifier(path, model, CLASSES)
    with pytest.raises(UserError, match="another transform .mean"):
        load_classifier(path, like=make(None, seed=2))
    assert preprocess_of("tiny", str(path)).mean == (0.5, 0.5, 0.5)  # what it says itself


# TorchScript archives


def test_an_archive_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half()
            self.mask = torch.ones(3)  # an attribute, no weight
            self.register_buffer("odd", torch.arange(12.0).reshape(3, 4).T[1:3])
            self.empty = nn.Parameter(torch.zeros(0, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x + self.mask) + self.odd.sum() + self.empty.sum()

    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.trace(Model().eval(), torch.zeros(2, 3)), path)
    expected, found = torch.jit.load(path).state_dict(), torchscript.read_torchscript(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in expected.items())
    assert torchscript.is_torchscript(path) and torchscript.activation_of(path) == "gelu"


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_nothing_in_an_archive_is_run(tmp_path: Path, clip: nn.Module, capsys, monkeypatch) -> None:
    whole = openai_archive(tmp_path / "whole.pt", clip)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("torch.jit is used"))
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as made:
        for name in source.namelist():
            evil = name.endswith("/data.pkl")
            made.writestr(name, pickle.dumps(Code(), protocol=2) if evil else source.read(name))
    refused(path, "may run code and are not loaded")
    assert "must not run" not in capsys.readouterr().out
    cut = tmp_path / "cut.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(cut, "w") as made:
        for name in source.namelist():
            made.writestr(name, source.read(name)[:10] if "/data/" in name else source.read(name))
    refused(cut, "not a readable weights file")


# Other forms


def test_the_text_tower_may_lie_below_text(tmp_path: Path, clip: nn.Module) -> None:
    state = clip.state_dict()
    below = {f"text.{name}" if name.startswith(names._TEXT) else name: value for name, value in state.items()}
    save_file(below, tmp_path / "custom.safetensors")
    loaded = create_clip("tiny", str(tmp_path / "custom.safetensors"), seed=0).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert names.with_text_of(state, below).keys() == below.keys()


def test_training_checkpoints_and_averages(tmp_path: Path, clip: nn.Module, caplog) -> None:
    state = clip.state_dict()
    path = tmp_path / "epoch_3.pt"
    averaged = {name: value + 1 for name, value in state.items()}
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    content = {"epoch": 3, "optimizer": {"state": {}}, "state_dict_ema": averaged, "state_dict": wrapped}
    torch.save(content, path)
    with caplog.at_level(logging.INFO, "robustft"):
        loaded = create_clip("tiny", str(path), seed=0).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert any("state_dict_ema" in record.getMessage() for record in caplog.records)


def test_weights_in_several_files(tmp_path: Path, clip: nn.Module) -> None:
    state = clip.state_dict()
    parts = {"model-1-of-2.safetensors": list(state)[:30], "model-2-of-2.safetensors": list(state)[30:]}
    for part, listed in parts.items():
        save_file({name: state[name] for name in listed}, tmp_path / part)
    index = {"weight_map": {name: part for part, listed in parts.items() for name in listed}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = create_clip("tiny", str(tmp_path), seed=0).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    (tmp_path / "model-2-of-2.safetensors").unlink()
    refused(tmp_path, "not whole", "model-2-of-2.safetensors is missing")


def test_what_is_no_whole_plain_clip_is_named(tmp_path: Path, clip: nn.Module) -> None:
    state = clip.state_dict()
    visual = {name: value for name, value in state.items() if name.startswith("visual.")}
    contents = {
        "image tower alone": visual,
        "image tower  alone": {name.removeprefix("visual."): value for name, value in visual.items()},
    }
    for words, tensors in contents.items():
        save_file(tensors, tmp_path / "some.safetensors")
        refused(tmp_path / "some.safetensors", words.replace("  ", " "))


def test_an_image_size_that_does_not_fit_is_named(tmp_path: Path, clip: nn.Module) -> None:
    larger = {**clip.state_dict(), "visual.positional_embedding": torch.zeros(50, WIDTH)}
    save_file(larger, tmp_path / "larger.safetensors")
    refused(tmp_path / "larger.safetensors", "visual.positional_embedding is (50, 72)", "56 px in patches of 8")
    large = {f"visual.transformer.resblocks.{k}.ln_1.weight": torch.empty(0) for k in range(24)}
    large["visual.proj"] = torch.empty(1024, 768, device="meta")
    large["visual.conv1.weight"] = torch.empty(1024, 3, 14, 14, device="meta")
    large["visual.positional_embedding"] = torch.empty(577, 1024, device="meta")
    said = weights._advice(large)
    assert "336 px" in said and "model.architecture=ViT-L-14-336 or" in said and "or ViT-L-14-336-quickgelu." in said


# Paths


@pytest.mark.slow
def test_folders_and_home_are_welcome_wherever_models_are(work: Path, monkeypatch) -> None:  # noqa: F811
    home = work / "home"
    monkeypatch.setenv("HOME", str(home))
    short = ("method=finetune", "trainer.max_steps=1")
    first = do(home / "first", *short)
    do(home / "second", *short, "seed=1")
    as_it_is = [do(work / "zero" / name, "method=zeroshot", f"model.pretrained='{path}'") for name, path in
                (("file", "~/first/model.safetensors"), ("folder", "~/first"))]  # fmt: skip
    assert all(record["id"] == first["id"] for record in as_it_is)
    for name in ("init", "teacher"):
        do(work / name, f"{name}='~/first'", "trainer.max_steps=1")
    assert do(work / "checkpoint", "method=evaluate", "checkpoint='~/first'")["id"] == first["id"]
    soups = [do(work / "soup" / str(k), "method=soup", f"checkpoints={given}")["id"] for k, given in
             enumerate(["['~/first','~/second']", "['~/first/model.safetensors','~/second']", "'~/*'"])]  # fmt: skip
    assert soups[0] == soups[1] == soups[2]
    found = model_files(["~/s*", "~/first", "~/second"])
    assert found == [home / k / "model.safetensors" for k in ("second", "first")]
    assert torch.equal(robustft.load("~/first").head.weight, robustft.load(home / "first").head.weight)
    with pytest.raises(UserError, match="checkpoints=~/third: no such file"):
        do(work / "none", "method=soup", "checkpoints=['~/first','~/third']")
