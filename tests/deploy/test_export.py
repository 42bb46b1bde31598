"""`robustft export`: each form is loaded back by the code in its model card, and is the run's model."""

import errno
import json
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import ExifTags, Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import robustft
from robustft.common.errors import UserError
from robustft.data.own.reading import read_upright
from robustft.deploy import export, push
from robustft.deploy.card import results_lines
from robustft.deploy.formats import FORMATS, as_open_clip, as_transformers, module_of
from robustft.deploy.model import Model
from robustft.deploy.source import Source, find
from robustft.deploy.text import Whole
from robustft.evaluation.summary import percent
from robustft.models import tiny
from robustft.models.names import to_hugging_face, to_open_clip
from robustft.models.text import without_visual
from robustft.models.weights import create_clip, model_config, save_classifier
from robustft.models.zeroshot import zeroshot_classifier
from tests.deploy.test_predict import told
from tests.small import do, work  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run in every form."""
    folder = tmp_path_factory.mktemp("exported")
    for form in FORMATS:
        assert export.main([str(run), str(folder / form), "--format", form]) == 0
    return folder


@pytest.fixture
def pixels(run: Path, pictures: Path) -> Tensor:
    model = robustft.load(run)
    return torch.stack([model.preprocess.pixels(Image.open(path).convert("RGB")) for path in pictures.rglob("*.png")])


def test_the_difference_is_said_and_small(run: Path, tmp_path: Path, capsys) -> None:
    assert export.main([str(run), str(tmp_path / "pt2"), "--format", "pt2"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"loaded back: logits differ by at most (\S+) on 16 images", said)
    assert found and float(found[1]) < 1e-4 and re.search(r"pt2: pt2, 1\.\d MB, \d+ s", said)
    assert [path.name for path in tmp_path.iterdir()] == ["pt2"]


def by_the_card(folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code of the card in a folder knows in its end, run where it says, on a.jpg."""
    if folder.name == "transformers":
        from transformers.utils import logging

        logging.disable_progress_bar()
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    place = folder.parent if f"{folder.name}/" in code else folder
    monkeypatch.chdir(place)
    shutil.copyfile(picture, place / "a.jpg")
    known: dict[str, Any] = {}
    exec(code, known)
    (place / "a.jpg").unlink()
    return known


@pytest.mark.parametrize("form", FORMATS)
def test_the_code_in_the_card_loads_it(
    exported: Path, run: Path, pictures: Path, form: str, monkeypatch, capsys
) -> None:
    known = by_the_card(exported / form, pictures / "b.png", monkeypatch)
    model = robustft.load(run)
    assert capsys.readouterr().out.strip().splitlines()[-1] == model.predict(pictures / "b.png")[0][0][0]
    with torch.no_grad():
        expected = model(model.preprocess(Image.open(pictures / "b.png"))[None])
    torch.testing.assert_close(torch.as_tensor(known["logits"]), expected, rtol=0, atol=1e-4)
    if "probabilities" in known:
        probabilities = (expected / model.temperature).softmax(1)
        torch.testing.assert_close(torch.as_tensor(known["probabilities"]), probabilities, rtol=0, atol=1e-5)
    assert known["classes"] == model.class_names


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L"])
def test_the_code_in_the_card_sees_what_a_person_sees(
    exported: Path, run: Path, tmp_path: Path, form: str, mode: str, monkeypatch
) -> None:
    """Turned, on white: as the run saw its images, and as `predict` does."""
    picture = Image.effect_noise((90, 60), 90).convert("RGB")
    picture.paste((250, 20, 20), (0, 0, 30, 60))
    picture = picture.convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize((90, 60)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    options = {"transparency": 3} if mode == "P" else {}
    kind = {"CMYK": "TIFF"}.get(mode, "PNG")
    picture.save(tmp_path / "turned", kind, exif=exif, **options)
    known, model = by_the_card(exported / form, tmp_path / "turned", monkeypatch), robustft.load(run)
    (answer,) = model.predict([tmp_path / "turned"], top=len(model.class_names), calibrated=False)
    with torch.no_grad():
        expected = model(model.preprocess(read_upright(str(tmp_path / "turned")))[None])
    torch.testing.assert_close(torch.as_tensor(known["logits"]), expected, rtol=0, atol=1e-4)
    assert answer[0][0] == model.class_names[int(expected.argmax())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "other"),
    [(form, {"resize": "squash"}) for form in FORMATS] + [(form, {"crop": 0.8}) for form in ("onnx", "pt2")],
)
def test_other_transforms_come_along(
    form: str, other: dict, run: Path, pictures: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "run").mkdir()
    for name in ("results.json", "config.yaml"):
        (tmp_path / "run" / name).write_text((run / name).read_text())
    described = dict(find(run).described)
    described["preprocess"] = json.dumps(json.loads(described["preprocess"]) | other)
    save_file(load_file(run / "model.safetensors"), tmp_path / "run" / "model.safetensors", described)
    typed = [str(tmp_path / "run"), str(tmp_path / form), "--format", form, "--images", str(pictures)]
    assert export.main(typed) == 0
    known, model = by_the_card(tmp_path / form, pictures / "grey.png", monkeypatch), robustft.load(tmp_path / "run")
    with torch.no_grad():
        expected = model(model.preprocess(Image.open(pictures / "grey.png"))[None])
        usual = robustft.load(run)
        differs = usual(usual.preprocess(Image.open(pictures / "grey.png"))[None])
    torch.testing.assert_close(torch.as_tensor(known["logits"]), expected, rtol=0, atol=1e-4)
    assert (differs - expected).abs().max() > 1e-2


def test_graphs_take_any_batch(exported: Path, run: Path, pixels: Tensor) -> None:
    import onnxruntime

    model = robustft.load(run)
    session = onnxruntime.InferenceSession(str(exported / "onnx" / "model.onnx"))
    program = torch.export.load(exported / "pt2" / "model.pt2").module()
    for count in (1, 2, 5):
        batch = pixels[:count]
        with torch.no_grad():
            logits = model(model.normalise(batch))
            features = torch.nn.functional.normalize(model.encode(model.normalise(batch)), dim=1)
            expected = ((logits / model.temperature).softmax(1), logits, features)
            found = [program(batch), tuple(map(torch.from_numpy, session.run(None, {"pixels": batch.numpy()})))]
        for outputs in found:
            for ours, theirs in zip(expected, outputs, strict=True):
                torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == model.class_names and json.loads(told["temperature"]) == model.temperature
    assert json.loads(told["preprocess"])["size"] == 64
    assert not list(exported.glob("onnx/*.data"))  # one file


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "RN50", "ViT-B-16-SigLIP"])
def test_graphs_hold_any_family(name: str, form: str, pictures: Path, tmp_path: Path) -> None:
    made = zeroshot_classifier(name, None, ["cat", "dog"], ["{}"], backbone="timm" if name.startswith("vit") else None)
    model = Model(made, ["cat", "dog"], 1.5).eval()
    seen = [Image.open(path).convert("RGB") for path in sorted(pictures.rglob("*.png"))]
    module_of(form).write(export.Parts(Source(tmp_path), model, None), tmp_path)
    found = module_of(form).read(tmp_path, model.preprocess)(seen)
    assert export.compare(found, export.logits_of(model, seen)) < 1e-4


def test_open_clip_has_both_towers(exported: Path, run: Path) -> None:
    folder = exported / "open_clip"
    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    clip, transform = loaded
    state, source = clip.state_dict(), create_clip("tiny", "embedded", 0).state_dict()
    ours = load_file(run / "model.safetensors")
    assert all(torch.equal(state[name], ours[name]) for name in ours if name.startswith("visual."))
    text = [name for name in source if not name.startswith("visual.")]
    assert text and all(torch.equal(state[name], source[name]) for name in text)
    assert not torch.equal(state["visual.proj"], source["visual.proj"])
    head = load_file(folder / "head.safetensors")
    assert torch.equal(head["weight"], ours["head.weight"]) and torch.equal(head["bias"], ours["head.bias"])
    assert float(head["temperature"]) == pytest.approx(robustft.load(run).temperature)
    assert "Resize(size=64" in str(transform) and "CenterCrop" in str(transform)
    again = create_clip("tiny", str(folder), 0)  # model.pretrained=DIR
    assert all(torch.equal(again.state_dict()[name], value) for name, value in state.items())


def perturbed(clip: torch.nn.Module) -> torch.nn.Module:
    """Every weight is another one than where it starts: norms that are mixed up would show."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in clip.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=random)
    return clip


def differences(clip: Any, theirs: Any, config: dict[str, Any], end: bool) -> tuple[float, float]:
    """Largest ones of the features of images and of texts, relative to the largest."""
    text, size = config["text_cfg"], config["vision_cfg"]["image_size"]
    random = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=random)
    tokens = torch.randint(2, text["vocab_size"] - 1, (2, text["context_length"]), generator=random)
    if end:
        tokens[0, 5], tokens[1, 3] = text["vocab_size"] - 1, text["vocab_size"] - 1
    with torch.no_grad():
        pairs = [
            (clip.encode_image(images), theirs.get_image_features(pixel_values=images)),
            (clip.encode_text(tokens), theirs.get_text_features(input_ids=tokens)),
        ]
    found = [(ours, getattr(other, "pooler_output", other)) for ours, other in pairs]
    first, second = (float((ours - other).abs().max() / ours.abs().max()) for ours, other in found)
    return first, second


@pytest.mark.parametrize("quick", [False, True])
def test_transformers_clip_is_the_same(quick: bool, tmp_path: Path) -> None:
    name = "tiny"
    if quick:
        config = json.loads((tiny.HERE / "tiny.json").read_text())
        (tmp_path / "tiny-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
        open_clip.add_model_config(tmp_path / "tiny-quickgelu.json")
        name = "tiny-quickgelu"
    clip = perturbed(create_clip(name, None, 0))
    made = as_transformers.clip_of(Whole(clip, None, True, None, False), model_config(name)).eval()
    assert max(differences(clip, made, model_config(name), end=True)) < 1e-5
    state = dict(clip.state_dict())
    again = to_open_clip(to_hugging_face(state), Path("x"))  # there and back
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"])
def test_transformers_siglip_is_the_same(name: str) -> None:
    config = model_config(name)
    config["text_cfg"]["vocab_size"] = 1000
    clip: Any = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    perturbed(clip)
    made = as_transformers.siglip_of(Whole(clip, None, True, None, False), config).eval()
    assert max(differences(clip, made, config, end=False)) < 1e-5


def test_the_tokenizer_is_open_clips(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = open_clip.get_tokenizer("ViT-B-32")
    as_transformers.write_tokenizer(Whole(torch.nn.Identity(), theirs, False, None, False), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a photo of a dog", "Müller's  3 great white sharks, at night!", "a rendition of the äöü.", ""]
    found = loaded(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]
    expected = theirs(texts)
    for ours, other in zip(found, expected, strict=True):
        end = int(other.argmax()) + 1  # behind the end open_clip pads with zeros
        assert torch.equal(ours[:end], other[:end])


# Nothing that is not finished, or not the run's model


def test_a_model_that_comes_back_as_another_is_not_kept(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    write = as_open_clip.write

    def other(parts, folder: Path) -> None:
        write(parts, folder)
        head = load_file(folder / "head.safetensors")
        head["weight"][3] += 0.01
        save_file(head, folder / "head.safetensors")

    monkeypatch.setattr(as_open_clip, "write", other)
    assert export.main([str(run), str(tmp_path / "x"), "--format", "open_clip"]) == 1
    assert "the exported model is not the run's: its logits differ by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="differ by nan"):
        export.compare(torch.tensor([float("nan")]), torch.zeros(1))


def test_what_cannot_be_traced_gets_one_line(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from robustft.deploy.network import Network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (pixels.float(),) * 3 if float(pixels.sum()) > 0 else (pixels.double(),) * 3

    monkeypatch.setattr(Network, "forward", forward)
    for form in ("pt2", "onnx"):
        assert export.main([str(run), str(tmp_path / "x"), "--format", form]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: tiny cannot be traced (") and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.ENOSPC, "full"), "error: cannot write x: No space left"), (KeyboardInterrupt(), "interrupted")],
)
def test_nothing_half_written(run: Path, tmp_path: Path, monkeypatch, capsys, error, words) -> None:
    write = as_open_clip.write

    def fails(parts, folder: Path) -> None:
        write(parts, folder)
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(as_open_clip, "write", fails)
    assert export.main([str(run), "x", "--format", "open_clip"]) != 0
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def described(folder: Path, architecture: str, config: dict[str, Any]) -> str:
    """A file that says that it is a model of that architecture, with no weights in it."""
    metadata = {
        "format": "robustft-classifier",
        "architecture": architecture,
        "config": json.dumps(config),
        "preprocess": json.dumps({"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}),
        "classes": json.dumps(["cat", "dog"]),
    }
    folder.mkdir()
    save_file({"head.weight": torch.zeros(2, 2)}, folder / "model.safetensors", metadata)
    return str(folder)


def test_refusals_get_one_line_before_torch_is_imported(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    vision = {"image_size": 224, "width": 64, "patch_size": None}
    resnet = described(tmp_path / "rn", "RN50", {"embed_dim": 4, "vision_cfg": {**vision, "layers": [3, 4, 6, 3]}})
    timm = described(tmp_path / "timm", "vit_small_patch16_224", {"backbone": "timm"})
    coca = described(tmp_path / "coca", "coca_ViT-B-32", {"vision_cfg": {"layers": 12, "attentional_pool": True}})
    convnext = described(tmp_path / "cn", "convnext_base", {"vision_cfg": {"timm_model_name": "convnext_base"}})
    one = str(run)
    known = {
        (one, "x", "--format", "tflite"): "--format=tflite: expected one of open_clip, onnx, pt2, transformers",
        ("nowhere", "x", "--format", "pt2"): "nowhere: no such file or folder",
        (one, "full", "--format", "pt2"): "full: is there already. Give a folder that is not, or delete it",
        (one, "full/file", "--format", "pt2"): "full/file: is there already",
        (one, "full/file/x", "--format", "pt2"): "cannot write into a folder there",
        (one, "x", "--format", "pt2", "--images", "no.png"): "no.png: no such file or folder",
        (one, "x", "--format", "pt2", "--text", "openai"): "--text does nothing with --format=pt2",
        (one, "x", "--format", "pt2", "--push", "a b/c"): "--push=a b/c: no name of a repository. Expected OWNER/NAME",
        (one, "x", "--format", "pt2", "--push", "mine"): "--push=mine: expected OWNER/NAME",
        (resnet, "x", "--format", "transformers"): "RN50 is a ResNet, and transformers' CLIP has vision transformers"
        " alone: --format=open_clip keeps both of its towers, onnx and pt2 take any model",
        (coca, "x", "--format", "transformers"): "no plain vision transformer (vision_cfg.attentional_pool)",
        (convnext, "x", "--format", "transformers"): "convnext_base has timm's convnext_base, which transformers lacks",
        (
            timm,
            "x",
            "--format",
            "transformers",
        ): "vit_small_patch16_224 has no text tower, which transformers' CLIP has",
        (timm, "x", "--format", "open_clip"): "vit_small_patch16_224 is timm's and has no text tower, which open_clip's"
        " models have: --format=onnx and pt2 take any model",
    }
    before = sorted(tmp_path.rglob("*"))
    said = told("export", [list(typed) for typed in known], tmp_path)
    assert len(said) == len(known), said
    for words, message in zip(known.values(), said, strict=True):
        assert words in message and len(message) < 400, message
    assert sorted(tmp_path.rglob("*")) == before


def test_what_lacks(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    for form, words in {
        "onnx": '--format=onnx needs onnx, onnxscript, onnxruntime: pip install "robustft[export]"',
        "transformers": '--format=transformers needs transformers: pip install "robustft[transformers]"',
    }.items():
        assert export.main([str(run), str(tmp_path / "x"), "--format", form]) == 1
        assert words in capsys.readouterr().err
    alone = tmp_path / "alone.safetensors"
    with safe_open(run / "model.safetensors", "pt") as file:  # as earlier versions wrote it: no text tower is named
        metadata = {key: value for key, value in file.metadata().items() if key != "text"}
    save_file(load_file(run / "model.safetensors"), alone, metadata)
    typed = [str(alone), str(tmp_path / "x"), "--format", "open_clip"]
    assert export.main(typed) == 1
    assert "no images of the run to compare on (" in (said := capsys.readouterr().err) and "--images PATH" in said
    typed += ["--images", *map(str, tmp_path.glob("*.none")), str(picture(tmp_path))]
    assert export.main(typed) == 1
    assert "which text tower belongs to it. --text TAG_OR_FILE" in capsys.readouterr().err
    assert export.main([*typed, "--text", str(tiny.WEIGHTS)]) == 0  # what it was, by its file
    assert "logits differ by at most" in capsys.readouterr().out
    state = load_file(tmp_path / "x" / "open_clip_model.safetensors")
    assert torch.equal(state["token_embedding.weight"], load_file(tiny.WEIGHTS)["token_embedding.weight"])
    assert not (tmp_path / "x" / "head.safetensors").read_bytes().count(b"temperature")


def test_a_models_file_alone_names_its_text_tower(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "model.safetensors").read_bytes())
    typed = [str(alone), str(tmp_path / "x"), "--format", "open_clip", "--images", str(picture(tmp_path))]
    assert export.main(typed) == 0
    state = load_file(tmp_path / "x" / "open_clip_model.safetensors")
    assert torch.equal(state["token_embedding.weight"], load_file(tiny.WEIGHTS)["token_embedding.weight"])


def test_an_older_runs_text_tower_is_that_of_its_settings(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    with safe_open(model, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "text"}
    save_file(load_file(model), model, metadata)
    assert export.main([str(tmp_path / "run"), str(tmp_path / "x"), "--format", "open_clip"]) == 0
    state = load_file(tmp_path / "x" / "open_clip_model.safetensors")
    assert torch.equal(state["token_embedding.weight"], load_file(tiny.WEIGHTS)["token_embedding.weight"])


def picture(folder: Path) -> Path:
    path = folder / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return path


def test_the_text_tower_is_found_through_the_runs_that_it_came_from(run: Path, work: Path, tmp_path: Path) -> None:  # noqa: F811
    do(work / "two", f"model.pretrained={run}/model.safetensors", "method=finetune", "trainer.max_steps=1")
    assert export.main([str(work / "two"), str(tmp_path / "x"), "--format", "open_clip"]) == 0
    state = load_file(tmp_path / "x" / "open_clip_model.safetensors")
    assert torch.equal(state["token_embedding.weight"], load_file(tiny.WEIGHTS)["token_embedding.weight"])


def test_weights_that_have_become_others_are_refused(work: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    clip, other = (create_clip("tiny", None, seed).state_dict() for seed in (1, 2))
    save_file(clip, tmp_path / "mine.safetensors")
    do(work / "mine", f"model.pretrained={tmp_path}/mine.safetensors", "method=finetune", "trainer.max_steps=1")
    assert export.main([str(work / "mine"), str(tmp_path / "x"), "--format", "open_clip"]) == 0
    capsys.readouterr()
    save_file(other, tmp_path / "mine.safetensors")
    assert export.main([str(work / "mine"), str(tmp_path / "y"), "--format", "open_clip"]) == 1
    said = capsys.readouterr().err
    assert "was that of mine.safetensors" in said and "what lies there now is another one" in said
    assert "--text TAG_OR_FILE" in said and said.count("\n") == 1
    assert not (tmp_path / "y").exists()


def test_a_trained_text_tower_is_the_one_that_is_exported(run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    model, trained = robustft.load(run), create_clip("tiny", None, 9)
    model.text = without_visual(deepcopy(trained))
    save_classifier(tmp_path / "run" / "model.safetensors", model, model.class_names)
    loaded = robustft.load(tmp_path / "run")
    assert loaded.text is not None and torch.equal(loaded.text.text_projection, trained.text_projection)
    for form in ("open_clip", "pt2"):
        assert export.main([str(tmp_path / "run"), str(tmp_path / form), "--format", form]) == 0
    state = load_file(tmp_path / "open_clip" / "open_clip_model.safetensors")
    assert torch.equal(state["token_embedding.weight"], trained.token_embedding.weight)
    assert torch.equal(state["visual.proj"], model.visual.proj)
    assert "The text tower was trained" in (tmp_path / "open_clip" / "README.md").read_text()
    assert export.main([str(tmp_path / "run"), str(tmp_path / "x"), "--format", "open_clip", "--text", "embedded"]) == 1
    assert "--text=embedded: the text tower was trained with the image tower" in capsys.readouterr().err
    names = torch.export.load(tmp_path / "pt2" / "model.pt2").state_dict
    assert any("visual" in name for name in names) and not any("token_embedding" in name for name in names)


def test_a_run_from_random_weights(work: Path, tmp_path: Path) -> None:  # noqa: F811
    do(work / "random", "method=finetune", "trainer.max_steps=1", "seed=5")
    assert export.main([str(work / "random"), str(tmp_path / "x"), "--format", "open_clip"]) == 0
    state, drawn = load_file(tmp_path / "x" / "open_clip_model.safetensors"), create_clip("tiny", None, 5).state_dict()
    assert torch.equal(state["token_embedding.weight"], drawn["token_embedding.weight"])
    card = (tmp_path / "x" / "README.md").read_text()
    assert "The text tower is drawn at random" in card and "started from random weights" in card


# The card and the hub


def test_the_card_says_what_the_model_is(exported: Path, run: Path) -> None:
    card = (exported / "open_clip" / "README.md").read_text()
    front, text = card.split("---\n")[1:3]
    assert front.startswith("license: apache-2.0\nlibrary_name: open_clip\n") and "- robust-fine-tuning" in front
    record = json.loads((run / "results.json").read_text())
    top1, retention = f"{100 * record['id']['top1']:.1f}", record["retention"].items()
    assert len(retention) == 2
    for words in (
        *robustft.load(run).class_names,
        "Prompts of the zero-shot head: `a {}.`;",
        "| `method.name` | finetune |",
        "| `optimizer.lr` | 0.0005 |",
        f"| this model | {top1} |",
        "| zero-shot |",
        "ECE, calibrated",
        "| task | zero-shot, % | this model, % | images |",
        *(f"| {name} | {percent(known['zeroshot_top1'])} | {percent(known['top1'])} |" for name, known in retention),
        "`embedded`) are under apache-2.0",
        "the largest difference on 16 images is",
        "https://arxiv.org/abs/2303.03052",
    ):
        assert words in text, words
    assert "/" + str(run).strip("/").split("/")[0] + "/" not in card  # no place on this machine
    assert "pipeline_tag: image-classification" in (exported / "onnx" / "README.md").read_text()


def test_the_card_says_what_is_known_of_retention(run: Path) -> None:
    record = json.loads((run / "results.json").read_text())
    unasked = "\n".join(results_lines({**record, "retention": None}))
    assert "What it still knows of other tasks (retention) was not measured." in unasked
    known = {"top1": 0.5, "zeroshot_top1": 0.75, "n": 1200}
    own = {"pets": {**known, "top1_own_text": 0.625}, "cars": {**known, "top1_own_text": None}}
    text = "\n".join(results_lines({**record, "retention": own}))
    assert "| task | zero-shot, % | this model, % | its own text, % | images |" in text
    assert "| pets | 75.0 | 50.0 | 62.5 | 1,200 |" in text and "| cars | 75.0 | 50.0 | – | 1,200 |" in text


def test_where_nobody_is_logged_in_it_says_what_it_would_upload(exported: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert push.push(exported / "open_clip", "me/fish") == 1
    said = capsys.readouterr().out
    assert "nobody is logged in" in said and "into me/fish" in said and "hf auth login" in said
    for path in (exported / "open_clip").iterdir():
        assert f"  {path.name}  {path.stat().st_size:,} bytes" in said


def test_the_folder_is_uploaded(exported: Path, monkeypatch, capsys) -> None:
    calls: list[Any] = []

    class Hub:
        def create_repo(self, name: str, exist_ok: bool) -> str:
            calls.append((name, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, **options: Any) -> None:
            calls.append(options)
            if options["repo_id"] == "me/fails":
                raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push.push(exported / "pt2", "me/fish") == 0
    assert calls[0] == ("me/fish", True) and calls[1]["folder_path"] == exported / "pt2"
    assert "uploaded: https://hub/me/fish" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"did not take it \(no network\)\. .*pt2 is complete; again: hf upload me/fails"
    ):
        push.push(exported / "pt2", "me/fails")
    assert module_of("pt2").FILE == "model.pt2" and "torch" in sys.modules
