"""`robustft predict` and `robustft.load(RUN).predict`, against a plain implementation and the run's own evaluation."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from safetensors.torch import load_file

import robustft
from robustft.common.errors import UserError
from robustft.deploy import again, predict
from robustft.deploy.model import Model
from robustft.deploy.source import find
from tests.small import ROOT, do, work  # noqa: F401 (a fixture)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plainly(run: Path, path: Path, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features and probabilities, by open_clip and its own transform."""
    state = load_file(run / "model.safetensors")
    clip = open_clip.create_model("tiny", load_weights=False).eval()
    visual = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    clip.visual.load_state_dict(visual)
    transform = image_transform_v2(PreprocessCfg(size=64), is_train=False)
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    with torch.no_grad():
        features = clip.encode_image(transform(image)[None], normalize=True)
    logits = features @ state["head.weight"].T + state["head.bias"]
    return features[0], (logits / temperature).softmax(1)[0]


def test_a_table_of_what_images_show(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.csv"
    first, features = pictures / "b.png", tmp_path / "features.npy"
    assert predict.main([str(run), str(first), str(pictures), "--out", str(out), "--features", str(features)]) == 0
    rows = rows_of(out)
    assert list(rows[0]) == ["path", "rank", "class", "probability"]
    inside = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.*"))
    expected = [str(first), *(str(pictures / name) for name in inside)]  # the order given; of a folder, by path
    assert [row["path"] for row in rows[::5]] == expected and [row["rank"] for row in rows] == list("12345") * 7
    temperature = json.loads((run / "results.json").read_text())["calibration"]["temperature"]
    assert temperature != 1
    names, saved = robustft.load(run).class_names, np.load(features)
    assert saved.shape == (7, 96) and saved.dtype == np.float32
    for number, path in enumerate(expected):
        unit, probabilities = plainly(run, Path(path), temperature)
        best = probabilities.topk(5)
        of_path = rows[5 * number : 5 * number + 5]
        assert [row["class"] for row in of_path] == [names[k] for k in best.indices]
        found = torch.tensor([float(row["probability"]) for row in of_path])
        torch.testing.assert_close(found, best.values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(saved[number]), unit, rtol=1e-5, atol=1e-6)


def test_raw_probabilities_and_other_tables(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    typed = [str(run), str(pictures / "turned.png"), str(pictures / "grey.png"), "--raw", "--top", "99"]
    assert predict.main(typed) == 0
    said = capsys.readouterr()
    shown = list(csv.DictReader(said.out.splitlines()))
    assert "2 images in" in said.err and len(shown) == 2 * 16
    _, probabilities = plainly(run, pictures / "turned.png", 1.0)
    assert float(shown[0]["probability"]) == pytest.approx(float(probabilities.max()), rel=1e-5)
    assert sum(float(row["probability"]) for row in shown[:16]) == pytest.approx(1, abs=1e-5)
    for kind in ("jsonl", "parquet"):
        assert predict.main([*typed, "--out", str(tmp_path / f"t.{kind}")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    for ours in (lines, table):
        assert [(r["path"], str(r["rank"]), r["class"]) for r in ours] == [
            (r["path"], r["rank"], r["class"]) for r in shown
        ]
        values = [r["probability"] for r in ours]
        assert values == pytest.approx([float(r["probability"]) for r in shown], rel=1e-6)


@pytest.mark.slow
def test_it_says_what_the_evaluation_said(work: Path, domains: Path, tmp_path: Path) -> None:  # noqa: F811
    typed = ["data=folders", f"data.train={domains}/photo", f"data.shifts.drawn={domains}/sketch", "data.holdout=2"]
    few = ["model.pretrained=null", "trainer.max_steps=2", "data.batch_size=8", "hydra.run.dir=own"]
    line = [sys.executable, str(ROOT / "run.py"), "model=tiny", "trainer=cpu", "logger=none", *few, *typed]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=work, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    with gzip.open(work / "own" / "predictions.csv.gz", "rt") as file:
        told = [row for row in csv.DictReader(file) if row["set"] == "drawn"]
    paths = [f"{domains}/sketch/{row['image']}" for row in told]
    assert len(paths) == 22
    out = tmp_path / "a.csv"
    assert predict.main([str(work / "own"), *paths, "--raw", "--top", "1", "--out", str(out)]) == 0
    found = rows_of(out)
    assert [row["class"] for row in found] == [row["prediction"] for row in told]
    assert [float(row["probability"]) for row in found] == pytest.approx([float(r["max_p"]) for r in told], abs=1e-6)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_cannot_be_read_is_listed_and_the_rest_is_done(
    run: Path, pictures: Path, tmp_path: Path, capsys, workers: str
) -> None:
    whole = (pictures / "b.png").read_bytes()
    for name, content in {"empty.png": b"", "page.jpg": b"<!DOCTYPE html><p>", "cut.png": whole[:900]}.items():
        (tmp_path / name).write_bytes(content)
    typed = [
        tmp_path / "empty.png",
        pictures / "b.png",
        tmp_path / "page.jpg",
        tmp_path / "cut.png",
        pictures / "b.png",
    ]
    out, features = tmp_path / "t.csv", tmp_path / "f.npy"
    options = ["--out", str(out), "--features", str(features), "--batch-size", "2", "--workers", workers]
    assert predict.main([str(run), *map(str, typed), *options]) == 1
    assert {row["path"] for row in rows_of(out)} == {str(pictures / "b.png")}
    assert len(rows_of(out)) == 10 and np.load(features).shape == (2, 96)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'empty.png'}: the file is empty" in said and "page.jpg: not an image but a web page" in said
    assert "cut.png: " in said and "3 of 5 images could not be read" in said and "Traceback" not in said
    assert predict.main([str(run), str(typed[0]), "--out", str(out), "--features", str(features)]) == 1
    assert rows_of(out) == [] and np.load(features).shape == (0, 96)


def test_by_the_model_that_it_started_from(run: Path, work: Path, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    do(work / "zero", "model.pretrained=embedded", "method=zeroshot")
    typed = [str(pictures), "--out", str(tmp_path / "z.csv")]
    assert predict.main([str(run), "--zero-shot", *typed]) == 0
    zeroshot = rows_of(tmp_path / "z.csv")
    assert predict.main([str(work / "zero"), *typed]) == 0
    assert [row["class"] for row in rows_of(tmp_path / "z.csv")] == [row["class"] for row in zeroshot]
    told = [json.loads((folder / "results.json").read_text())["calibration"] for folder in (run, work / "zero")]
    assert told[0]["zeroshot_temperature"] == pytest.approx(told[1]["temperature"], rel=1e-3)
    found = [[float(row["probability"]) for row in rows] for rows in (rows_of(tmp_path / "z.csv"), zeroshot)]
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)
    assert predict.main([str(run), *typed]) == 0
    assert [float(row["probability"]) for row in rows_of(tmp_path / "z.csv")] != pytest.approx(found[0], rel=1e-3)


def test_other_classes_are_told_by_what_differs(run: Path, monkeypatch) -> None:
    names, data = find(str(run)).class_names, again.data_of(find(str(run)))
    monkeypatch.setattr(again, "data_of", lambda _: data)
    for now, words in {
        (*names[:-1], "zebra"): f"zebra is new, {names[-1]} is missing",
        (*names[:-2], names[-1], names[-2]): f"the same in another order: {names[-1]} is where {names[-2]} was",
    }.items():
        data.class_names = list(now)
        with pytest.raises(UserError, match=f"16 that the model was trained for: {words}$"):
            again.zeroshot_of(find(str(run)), names)


def test_nothing_half_written(run: Path, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    answer, calls = Model.answer, []

    def fails(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return answer(*arguments, **options)

    monkeypatch.setattr(Model, "answer", fails)
    for kind in ("csv", "jsonl", "parquet"):
        calls.clear()
        out = tmp_path / kind / f"t.{kind}"
        typed = [
            str(run),
            str(pictures),
            "--batch-size",
            "2",
            "--out",
            str(out),
            "--features",
            str(out.with_suffix(".npy")),
        ]
        assert predict.main(typed) == 130 and len(calls) == 2
        assert not list(out.parent.iterdir())


def mistakes(run: Path, pictures: Path, folder: Path) -> dict[str, tuple[list[str], str]]:
    one, holiday = str(run), str(pictures)
    (folder / "hollow").mkdir()
    (folder / "notes.txt").write_text("text")
    (folder / "clip").mkdir()
    (folder / "clip" / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    (folder / "torn").mkdir()
    (folder / "torn" / "model.safetensors").write_bytes(b"torn")
    (folder / "no_model").mkdir()
    (folder / "no_model" / "results.json").write_text((run / "results.json").read_text())
    (folder / "begun").mkdir()
    (folder / "alone").mkdir()
    (folder / "alone" / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    (folder / "begun" / "config.yaml").write_text((run / "config.yaml").read_text())
    return {
        "no run": (["nowhere", holiday], "nowhere: no such file or folder. Expected the folder of a run"),
        "an empty run": (["hollow", holiday], "hollow: no model.safetensors in there"),
        "a run without a model": (["no_model", holiday], "that run left no model to use. method=finetune"),
        "a run that has begun": (["begun", holiday], "that run has left no model yet. Go on with it: resume=begun"),
        "weights of others": (["clip", holiday], "is not a model left by a run. Weights of others are read by"),
        "damaged": (["torn", holiday], "model.safetensors is not a readable model"),
        "no image": ([one, "nothing.jpg"], "nothing.jpg: no such file or folder. Expected images, or folders"),
        "no images": ([one, "hollow"], "hollow: no images in that folder"),
        "a table of no kind": ([one, holiday, "--out", "t.txt"], "--out=t.txt: expected the name of a table, FILE.csv"),
        "a folder": ([one, holiday, "--out", "dir.csv"], "--out=dir.csv: that is a folder"),
        "below a file": ([one, holiday, "--out", "notes.txt/t.csv"], "cannot write into a folder there (notes"),
        "features": ([one, holiday, "--features", "f.txt"], "--features=f.txt: expected the name of a NumPy file"),
        "top": ([one, holiday, "--top", "0"], "--top=0: expected a whole number, 1 or more"),
        "batch": ([one, holiday, "--batch-size", "0"], "--batch-size=0: expected a whole number, 1 or more"),
        "device": ([one, holiday, "--device", "tpu9"], "--device=tpu9: not here. Expected cpu, cuda"),
        "zero-shot": (["alone", holiday, "--zero-shot"], "says how the model came about"),
        "workers": ([one, holiday, "--workers", "-1"], "--workers=-1: expected a whole number, 0 or more"),
    }  # fmt: skip


ASK = """
import json, sys
from robustft.deploy import {module}
for line in json.loads(sys.stdin.read()):
    print({module}.main(line))
    assert "torch" not in sys.modules, line
"""


def told(module: str, lines: list[list[str]], folder: Path) -> list[str]:
    """What a command says to mistakes, in one process into which torch does not come."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = subprocess.run(
        [sys.executable, "-c", ASK.format(module=module)],
        input=json.dumps(lines), cwd=folder, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.split() == ["1"] * len(lines), asked.stdout
    return [line.removeprefix("error: ") for line in asked.stderr.splitlines()]


def test_mistakes_get_one_line_before_torch_is_imported(run: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "dir.csv").mkdir()
    known = mistakes(run, pictures, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    said = told("predict", [typed for typed, _ in known.values()], tmp_path)
    assert len(said) == len(known), said
    for (name, (_, words)), message in zip(known.items(), said, strict=True):
        assert words in message and len(message) < 400, f"{name}: {message}"
    assert sorted(tmp_path.rglob("*")) == before


def test_other_mistakes(run: Path, pictures: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def refused(*typed: str) -> str:
        assert predict.main(list(typed)) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    assert "--device=tpu9: not here" in refused(str(run), str(pictures), "--device", "tpu9")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "model.safetensors").read_bytes())
    assert "says how the model came about" in refused(str(alone), str(pictures), "--zero-shot")
    assert predict.main([str(alone), str(pictures)]) == 0
    assert "no temperature was fitted on a hold-out: probabilities are raw" in capsys.readouterr().err
    record = json.loads((run / "results.json").read_text())
    for change, words in {
        "tokenizer": "model.tokenizer._target_=os.system is no code of robustft's: not followed",
        "data": "the settings of its data name code to run besides its class: not followed",
    }.items():
        folder = tmp_path / change
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(alone.read_bytes())
        evil = {"_target_": "os.system", "command": f"touch {tmp_path}/executed"}
        config = {**record["config"], "model": {**record["config"]["model"]}, "data": {**record["config"]["data"]}}
        (config["model"] if change == "tokenizer" else config["data"])[change if change == "tokenizer" else "root"] = (
            evil
        )
        (folder / "results.json").write_text(json.dumps(record | {"config": config}))
        assert words in refused(str(folder), str(pictures), "--zero-shot")
        assert predict.main([str(folder), str(pictures)]) == 0
        capsys.readouterr()
    assert not (tmp_path / "executed").exists()


def test_a_picture_to_a_class_name_in_two_lines(run: Path, pictures: Path) -> None:
    model = robustft.load(run)
    image = Image.open(pictures / "turned.png")
    answers = model.predict([str(pictures / "turned.png"), pictures / "turned.png", image], top=3)
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) == 3
    (alone,) = model.predict(image, top=3)  # another batch, other last digits
    assert [name for name, _ in alone] == [name for name, _ in answers[2]]
    assert [p for _, p in alone] == pytest.approx([p for _, p in answers[2]], rel=1e-5)
    with torch.no_grad():
        logits = model(model.preprocess(image)[None])
    best = (logits / model.temperature).softmax(1)[0].topk(3)
    assert [name for name, _ in answers[0]] == [model.class_names[k] for k in best.indices]
    assert [p for _, p in answers[0]] == pytest.approx(best.values.tolist(), rel=1e-5)
    raw = model.predict([image], top=1, calibrated=False)[0][0]
    assert raw[1] == pytest.approx(float(logits.softmax(1).max()), rel=1e-5)
    assert len(model.predict([image] * 70, top=1)) == 70 and model.predict([]) == []
    with pytest.raises(UserError, match=r"Cannot read the image nothing\.jpg"):
        model.predict(["nothing.jpg"])


def test_paths_that_are_no_unicode(run: Path, pictures: Path, tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/\xff.png"
    with open(place, "wb") as file:
        file.write((pictures / "b.png").read_bytes())
    for kind in ("csv", "jsonl", "parquet"):
        assert predict.main([str(run), os.fsdecode(place), "--out", str(tmp_path / f"t.{kind}")]) == 0
    assert place in (tmp_path / "t.csv").read_bytes()
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])["path"] == os.fsdecode(place)
