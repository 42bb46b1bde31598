"""What the product makes of damaged results, configs, tables, weights, archives and checkpoints.

Each has to be refused in one line, or read as what it was: the same shapes, classes and columns.
"""

import contextlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.faults.mutations import changed, spoiled
from tests.faults.watched import Attempt, Judge, each_drawn
from tests.small import SMALL, do

RUN = ("model.pretrained=embedded", "method=finetune", "trainer.max_steps=4")
LONGEST = 700  # characters of a line


def lay_out(folder: Path) -> None:
    """Make whole files of every kind: a run that is finished, and weights as others leave them."""
    import open_clip
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from robustft.models.names import to_hugging_face
    from robustft.models.weights import create_clip
    from robustft.training.checkpoints import SCORE, read_position

    with contextlib.redirect_stdout(None):
        do(folder / "run", *RUN)
    (folder / "run" / "overrides.yaml").write_text(json.dumps([*SMALL, *RUN]))  # as the command leaves it
    known = read_position(folder / "run").best  # and the file that goes with it, which a run takes away at its end
    with safe_open(folder / "run" / "model.safetensors", "pt") as file:
        told = {**file.metadata(), SCORE: repr(known["score"]), "run": known["run"], "step": "4"}
    save_file(load_file(folder / "run" / "model.safetensors"), folder / "run" / "best.safetensors", told)
    weights = folder / "weights"
    weights.mkdir()
    clip: Any = create_clip("tiny", "embedded", 0)
    state = dict(clip.state_dict())
    save_file(state, weights / "plain.safetensors")
    torch.save(state, weights / "plain.pt")
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v.half() for k, v in state.items()}}, weights / "training.pt")
    torch.save(state, weights / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(clip, weights / "module.pt")
    save_file(to_hugging_face(state), weights / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "plain.safetensors")}
    (weights / "some.safetensors.index.json").write_text(json.dumps(index))
    _torchscript(clip, weights / "archive.pt")
    assert open_clip.get_model_config("tiny")
    tables = folder / "tables"
    tables.mkdir()
    (tables / "classes.json").write_text(json.dumps({"cat": ["cat", "kitten"], "dog": "dog"}))
    (tables / "classes.csv").write_text("folder,name\ncat,cat\ndog,dog\n")
    (tables / "images.csv").write_text("path,label,split\na.png,cat,train\nb.png,dog,val\n")
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.table({"path": ["a.png"], "label": ["cat"]}), tables / "images.parquet")
    record = json.loads((folder / "run" / "results.json").read_text())
    lines = [{**record, "entry": f"one_seed-{seed}", "seed": seed, "files": {}} for seed in (0, 1)]
    (tables / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _torchscript(clip: Any, path: Path) -> None:
    """An archive as OpenAI's: written by torch.jit, which nothing else here asks."""
    from tests.test_weights import torchscript

    torchscript(path, clip)


# Generators: what was done, and the content of the file.


def of_bytes(path: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    return spoiled([path.read_bytes()])


def of_json(path: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    """Parts of it gone or replaced, or its bytes spoiled."""
    made = changed(json.loads(path.read_text())).map(lambda case: (case[0], _json(case[1])))
    return st.one_of(made, made, of_bytes(path))


def of_lines(path: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    made = changed(rows).map(lambda case: (case[0], b"\n".join(map(_json, case[1]))))
    return st.one_of(made, of_bytes(path))


def of_yaml(path: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    made = changed(yaml.safe_load(path.read_text()))
    text = made.map(lambda case: (case[0], _json(case[1])))  # which is YAML too
    return st.one_of(text, text, of_bytes(path))


def of_metadata(path: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    """A safetensors file with other metadata, that which is JSON inside of it included; or its bytes spoiled."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    told = {key: _inner(value) for key, value in header["__metadata__"].items()}

    def written(case: tuple[str, Any]) -> tuple[str, bytes]:
        metadata = {k: v if isinstance(v, str) else _json(v).decode() for k, v in case[1].items()}
        text = _json({**header, "__metadata__": metadata})
        return case[0], len(text).to_bytes(8, "little") + text + content[8 + size :]

    made = changed(told).map(written)
    return st.one_of(made, made, changed(header).map(lambda case: _headed(case, content[8 + size :])), of_bytes(path))


def _headed(case: tuple[str, Any], data: bytes) -> tuple[str, bytes]:
    text = _json(case[1])
    return case[0], len(text).to_bytes(8, "little") + text + data


def _inner(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


# Judges: what is wrong with the answer to a file.


def refused(make: Callable[[], str | None]) -> str | None:
    """What ``make`` says is wrong; that it refuses is right, if it does so in one line."""
    from robustft.common.errors import UserError

    try:
        return make()
    except UserError as error:
        return _line(str(error))


def _line(said: str) -> str | None:
    wrong = "\n" in said or "\r" in said or not said or len(said) > LONGEST
    if wrong:
        return f"not one line: {said!r:.300}"
    if "MemoryError" in said or "allocate" in said:
        return f"out of memory: {said:.200}"
    return None


def reported(path: Path) -> str | None:
    """As ``robustft report FILE --html PAGE`` answers."""
    from robustft.report.__main__ import main

    page = path.parent / "page.html"
    page.unlink(missing_ok=True)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main([str(path), "--html", str(page)])
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if status == 0:
        return None if page.is_file() else "no page"
    return f"{len(lines)} errors: {said.getvalue()[-200:]!r}" if len(lines) != 1 else _line(said.getvalue().strip())


def stored(path: Path) -> str | None:
    from robustft.studies import store

    return refused(lambda: store.read(path) and None)


def configured(folder: Path) -> str | None:
    """A run's folder with this config: looked into, gone on with, and its data and weights found again."""
    from robustft.cli import resuming, run_folder
    from robustft.deploy import again, text
    from robustft.deploy.source import Source

    def look() -> str | None:
        resuming.saved_config(folder)
        run_folder.what_lies_in(folder)
        resuming.check_resumable(folder)
        return None

    source = Source(folder / "model.safetensors")

    def make() -> str | None:
        again.data_of(source)
        return None

    def weights() -> str | None:
        again.model_settings(source)
        text._started_from(source)
        return None

    return refused(look) or refused(make) or refused(weights)


def gone_on_with(folder: Path) -> str | None:
    """``resume=FOLDER``, up to where the run would begin."""
    from robustft.cli import plan

    def make() -> str | None:
        plan.make_plan([f"resume={folder}"])
        return None

    return refused(make)


def used(path: Path) -> str | None:
    """A model of a run: loaded, and asked."""
    from PIL import Image

    import robustft

    def make() -> str | None:
        model = robustft.load(path)
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if shapes != _shapes():
            return "other shapes"
        (answer,) = model.predict(Image.new("RGB", (32, 32)), top=16)
        return None if len(answer) == 16 else f"{len(answer)} classes"

    return refused(make)


@cache
def _shapes() -> dict[str, tuple[int, ...]]:
    import robustft

    assert WHOLE is not None
    return {n: tuple(v.shape) for n, v in robustft.load(WHOLE / "run" / "model.safetensors").state_dict().items()}


def as_pretrained(path: Path) -> str | None:
    """Weights of others: whatever is loaded has the architecture's shapes, or it is refused."""
    from robustft.models.weights import create_clip

    return refused(lambda: create_clip("tiny", str(path), 0) and None)


def positioned(folder: Path) -> str | None:
    from robustft.training.checkpoints import check_best, read_position

    def make() -> str | None:
        check_best(read_position(folder))
        return None

    return refused(make)


def table(path: Path) -> str | None:
    from robustft.data.own.table import COLUMNS, read_table, records_of

    def make() -> str | None:
        header, rows = read_table(path)
        columns = COLUMNS if {"path", "label"} <= {*header} else {**COLUMNS, "path": header[0], "label": header[-1]}
        records = records_of(path, rows, path.parent, columns)
        return None if all(isinstance(cell, str) for record in records for cell in record) else "cells that are no text"

    return refused(make)


def names(path: Path) -> str | None:
    from robustft.data.own.names import read_names

    return refused(lambda: read_names(path) and None)


def paired(folder: Path) -> str | None:
    """The differences image by image to itself, from its predictions."""
    from robustft.report import paired
    from robustft.report.groups import group_over_seeds
    from robustft.report.runs import read_runs

    def make() -> str | None:
        paired.scores.cache_clear() if hasattr(paired, "scores") else None
        (group,) = group_over_seeds(read_runs([folder / "results.json"]))
        paired.differences(group, group)
        return None

    return refused(make)


# By kind: the whole file, what spoils it, and the judge, which is given the file or (with a "/") its folder.
KINDS: dict[str, tuple[str, Callable[[Path], st.SearchStrategy], Callable[[Path], str | None], bool]] = {
    "results.json": ("run/results.json", of_json, reported, False),
    "results.jsonl": ("tables/results.jsonl", of_lines, reported, False),
    "results.jsonl of a study": ("tables/results.jsonl", of_lines, stored, False),
    "predictions": ("run/predictions.csv.gz", of_bytes, paired, True),
    "config.yaml": ("run/config.yaml", of_yaml, configured, True),
    "overrides.yaml": ("run/overrides.yaml", of_yaml, gone_on_with, True),
    "model.safetensors": ("run/model.safetensors", of_metadata, used, False),
    "last.ckpt": ("run/last.ckpt", of_bytes, positioned, True),
    "best.safetensors": ("run/best.safetensors", of_metadata, positioned, True),
    "plain.safetensors": ("weights/plain.safetensors", of_bytes, as_pretrained, False),
    "model of Hugging Face": ("weights/model.safetensors", of_bytes, as_pretrained, False),
    "plain.pt": ("weights/plain.pt", of_bytes, as_pretrained, False),
    "training checkpoint": ("weights/training.pt", of_bytes, as_pretrained, False),
    "old.pt": ("weights/old.pt", of_bytes, as_pretrained, False),
    "pickled module": ("weights/module.pt", of_bytes, as_pretrained, False),
    "TorchScript": ("weights/archive.pt", of_bytes, as_pretrained, False),
    "index of several files": ("weights/some.safetensors.index.json", of_json, as_pretrained, True),
    "class names in JSON": ("tables/classes.json", of_json, names, False),
    "class names in CSV": ("tables/classes.csv", of_bytes, names, False),
    "table in CSV": ("tables/images.csv", of_bytes, table, False),
    "table in Parquet": ("tables/images.parquet", of_bytes, table, False),
}
# Those that lie in a run's folder with all the rest of it, and without what would say that it is finished.
NEEDS_MORE = {"config.yaml": True, "overrides.yaml": True, "last.ckpt": True, "best.safetensors": True}
WHOLE: Path | None = None  # where the whole files lie, in a watched process


def warm(whole: Path) -> None:
    """Use every whole file once: none may be called wrong."""
    global WHOLE
    WHOLE = whole
    logging.disable(logging.WARNING)
    place = whole.with_name(f"warm-{os.getpid()}")  # others are at it too
    for kind, (name, *_) in KINDS.items():
        if (whole / name).exists() and (said := judge(place, kind, (whole / name).read_bytes())) is not None:
            raise AssertionError(f"the whole {name}: {said}")


def judge(folder: Path, kind: str, content: bytes) -> str | None:
    """Put the content in the place of the whole file, and ask the judge of its kind."""
    assert WHOLE is not None
    name, _, judged, in_folder = KINDS[kind]
    place = folder / kind.replace(" ", "-")
    if not place.exists():
        place.mkdir(parents=True)
        if in_folder:
            for path in (WHOLE / name).parent.iterdir():
                shutil.copy(path, place) if path.is_file() else None
            if kind in NEEDS_MORE:
                (place / "results.json").unlink()
    file = place / Path(name).name
    file.write_bytes(content)
    if kind.startswith("index"):
        return judged(file)
    return judged(place if in_folder else file)


def spoiled_files(whole: Path, attempt: Attempt, seed: int, count: int, folder: Path) -> None:
    """So many spoiled files, of each kind the same number."""
    kinds = [kind for kind, (name, *_) in KINDS.items() if (whole / name).exists()]
    for number, kind in enumerate(kinds):
        share = count // len(kinds) + (number < count % len(kinds))
        if share:
            each_drawn(KINDS[kind][1](whole / KINDS[kind][0]), seed, share, _judged(attempt, folder, kind))


def _judged(attempt: Attempt, folder: Path, kind: str) -> Callable[[tuple[str, bytes]], None]:
    def take(case: tuple[str, bytes]) -> None:
        attempt(f"{kind} ({case[0]})", lambda: judge(folder, kind, case[1]))

    return take


def lay_bombs(whole: Path, folder: Path) -> Iterator[tuple[str, Judge]]:
    """Small files that ask for much memory or time, by kind; what to attempt with them."""
    for number, (kind, what, content) in enumerate(bombs(whole)):
        path = folder / f"bomb-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        yield f"{kind}: {what}", partial(_bomb, folder / f"of-{number}", kind, path)


def _bomb(folder: Path, kind: str, path: Path) -> str | None:
    return judge(folder, kind, path.read_bytes())


def bombs(whole: Path) -> Iterator[tuple[str, str, bytes]]:
    """(kind, what it does, content)."""
    import gzip
    import pickle
    import zipfile

    import torch

    def saved(value: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()

    def again(name: str, change: Callable[[str, bytes], bytes], how: int = zipfile.ZIP_STORED) -> bytes:
        """An archive with other parts."""
        stream = io.BytesIO()
        with zipfile.ZipFile(whole / name) as old, zipfile.ZipFile(stream, "w", how) as new:
            for part in old.namelist():
                new.writestr(part, change(part, old.read(part)))
        return stream.getvalue()

    huge = torch.zeros(1, dtype=torch.half).expand(2**36)
    yield "plain.pt", "a value that is shown 69 billion times", saved({"visual.proj": huge})
    yield "training checkpoint", "the same inside", saved({"state_dict": {"visual.proj": huge}})
    holes = b"\x80\x02]r\xff\xff\xff\x7f."
    for name in ("weights/archive.pt", "weights/module.pt"):
        kind = "TorchScript" if "archive" in name else "pickled module"
        put = partial(_instead, "/data.pkl", holes)
        yield kind, "a memo with 2 billion holes", again(name, put)
        zeros = partial(_instead, "/data/0", bytes(2**30))
        yield kind, "a gigabyte of zeros, compressed", again(name, zeros, zipfile.ZIP_DEFLATED)
        text = partial(_instead, "/data.pkl", bytes(2**30))
        yield kind, "a pickle of a gigabyte, compressed", again(name, text, zipfile.ZIP_DEFLATED)
    yield "old.pt", "a memo with 2 billion holes", holes
    yield "pickled module", "modules that hold each other twice", pickle.dumps(_doubled(40))
    config = yaml.safe_load((whole / "run/config.yaml").read_text())
    for kind in ("config.yaml", "overrides.yaml"):
        lines = ["a0: &a0 [x, x]"] + [f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 40)]
        yield kind, "aliases of aliases", ("\n".join(lines) + "\n").encode()
        yield kind, "nested 100,000 deep", b"[" * 100_000
    config["data"]["train_images"] = 10**12
    yield "config.yaml", "a trillion images", _json(config)
    yield "results.json", "nested 100,000 deep", b'{"schema":' * 100_000
    yield "results.jsonl", "nested 100,000 deep", b"[" * 100_000
    yield "class names in JSON", "nested 100,000 deep", b"[" * 100_000
    yield "results.json", "a number of a million digits", b'{"schema": ' + b"9" * 10**6 + b"}"
    yield "predictions", "a gigabyte of one line, compressed", gzip.compress(bytes(2**30))
    yield "plain.safetensors", "a header of 8 exabytes", (2**63 - 1).to_bytes(8, "little") + b"{}"
    model = (whole / "run/model.safetensors").read_bytes()
    size = int.from_bytes(model[:8], "little")
    header = json.loads(model[8 : 8 + size])
    for what, change in {
        "a width of a billion": ("config", "width", 10**9),
        "a million layers": ("config", "layers", 10**6),
        "images of a million pixels a side": ("config", "image_size", 10**6),
        "a transform of a million pixels a side": ("preprocess", "size", 10**6),
        "an embedding of a billion": ("config", "embed_dim", 10**9),
    }.items():
        yield "model.safetensors", what, _headed(("", _told(header, *change)), model[8 + size :])[1]
    yield "table in CSV", "a field of 64 MB", b"path,label\n" + b"x" * 2**26 + b",cat\n"
    yield "table in CSV", "a million columns", b"path,label" + b",x" * 10**6 + b"\na.png,cat\n"


def _instead(name: str, content: bytes, part: str, before: bytes) -> bytes:
    return content if part.endswith(name) else before


def _told(header: dict[str, Any], place: str, key: str, value: Any) -> dict[str, Any]:
    metadata = dict(header["__metadata__"])
    told = json.loads(metadata[place])
    inside = next((part for part in (told, told.get("vision_cfg", {})) if key in part), told)
    inside[key] = value
    return {**header, "__metadata__": {**metadata, place: json.dumps(told)}}


def _doubled(depth: int) -> Any:
    """A module that holds another one twice, and so on."""
    from torch import nn

    module = nn.Identity()
    for _ in range(depth):
        outer = nn.Module()
        outer.add_module("a", module)
        outer.add_module("b", module)
        module = outer
    return module
