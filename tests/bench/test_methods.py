"""Training methods timed against their own floor."""

import json
from pathlib import Path

import pytest
import torch

from robustft.bench import __main__ as bench
from robustft.bench import methods
from robustft.bench.methods import MethodBench, Timed, rows
from robustft.bench.names import chosen
from robustft.bench.steps import Bench
from robustft.bench.timing import COLUMNS
from robustft.cli import described, sources
from robustft.common.errors import UserError
from robustft.models.frozen_text import FrozenText
from robustft.models.work import flops

TRAINING = [name for name in sources.groups()["method"] if described.takes("method", name)["trains"]]
TIMED = [name for name in TRAINING if name != "linear_probe"]  # whose steps are of the head alone


def made(typed: str, whole: bool = False) -> MethodBench:
    return MethodBench(typed, "tiny", 4, "32-true", "cpu", whole)


def transformer(tokens: int, width: int, layers: int, last: int, expansion: int = 4) -> float:
    """Multiplications and additions by the formulas; the last layer's queries are of ``last`` tokens alone."""

    def layer(queries: int) -> float:
        projections = 2 * width * width * (2 * tokens + 2 * queries) + 4 * queries * width * width * expansion
        return projections + 4 * queries * tokens * width

    return (layers - 1) * layer(tokens) + layer(last)


def test_arithmetic_is_counted() -> None:
    """Of the tiny model's towers, against the formulas."""
    one = made("flyp")
    method, batch = one.method, one.data
    pairs = method.pairs(batch)
    visual, text = method.student.visual, method.student.text
    side, width = visual.conv1.kernel_size[0], visual.conv1.out_channels
    patches = method.student.patches
    expansion = visual.transformer.resblocks[0].mlp.c_fc.out_features // width
    image = transformer(patches + 1, width, len(visual.transformer.resblocks), 1, expansion)
    image += 2 * patches * 3 * side * side * width + 2 * width * visual.proj.shape[1]
    assert flops(lambda: method.student.encode(batch.images)) == pytest.approx(4 * image)
    prompts, length = pairs.tokens.shape
    blocks, width = text.transformer.resblocks, text.positional_embedding.shape[1]
    expansion = blocks[0].mlp.c_fc.out_features // width
    words = transformer(length, width, len(blocks), 1, expansion) + 2 * width * text.text_projection.shape[1]
    assert flops(lambda: method.student.encode_text(pairs.tokens)) == pytest.approx(prompts * words)
    assert one.floor == pytest.approx(3 + 3 * prompts * words / (4 * image))


@pytest.mark.parametrize(
    ("typed", "floor"),
    [
        ("finetune", 3), ("lpft", 3), ("clipood", 3), ("finetune,constraint=spd", 3), ("kd,beta=0", 3),
        ("kd", 4), ("carft", 4), ("counterfactual,mask=none", 4), ("counterfactual", 8), ("kd,mask=object", 8),
        ("counterfactual,mask.layers=1", 7.25), ("counterfactual,mask.source=teacher", 9),
        ("counterfactual,mask=random,fill=none", 3 + 4 * 33 / 65), ("counterfactual,mask=random,fill=multi", 7),
    ],
)  # fmt: skip
def test_floors(typed: str, floor: float) -> None:
    assert made(typed).floor == pytest.approx(floor)


def test_floors_of_the_papers_variants_are_those_of_its_bench() -> None:
    known = Bench("tiny", batch=4, precision="32-true", device="cpu")
    for typed, kind in (("counterfactual", "exact"), ("counterfactual,mask.layers=1", "last_layer")):
        assert made(typed).floor == pytest.approx(known.forwards(kind))


@pytest.mark.slow
def test_floors_with_texts() -> None:
    """t of a forward pass is that of the prompts: FLYP has 3 + 3 t, a teacher of both towers 1 + t more."""
    t = (made("flyp").floor - 3) / 3
    assert 0 < t < 0.2
    assert made("flyp", whole=True).floor > made("flyp").floor
    assert made("carot").floor == made("tracer").floor == pytest.approx(4 + 4 * t)
    assert made("carot,method.weight=0").floor == pytest.approx(3 + 3 * t)
    assert made("carot,mask=object,fill=single").floor == pytest.approx(4 + 4 * t + 4)
    assert made("tracer,mask=object,fill=single").floor == pytest.approx(4 + 4 * t + 5)  # the teacher sees x too
    assert made("flyp,beta=1,mask=object,fill=single").floor == pytest.approx(8 + 3 * t)
    assert 4 < made("lipsum").floor < 5.5  # 80 texts for four images
    whole = made("ldifs").floor / 4  # the last block, of four, for all tokens
    assert 1.1 < whole < 1.3
    assert made("ldifs,mask=object,fill=single").floor == pytest.approx(3 + 5 * whole)


def test_what_is_timed() -> None:
    assert chosen(["all"]) == TIMED
    assert chosen(["kd", "kd", "counterfactual,mask=none"]) == ["kd", "counterfactual,mask=none"]
    assert rows(["kd", "flyp"], True) == [("kd", False), ("flyp", False), ("flyp", True)]
    for name, what in (
        ("linear_probe", "no step through"),
        ("wiseft", "no step through"),
        ("nobody", "no such method"),
    ):
        with pytest.raises(UserError, match=what):
            chosen([name])
    assert Timed(seconds=1.0, vs_vanilla=1.5, floor=4.0, floor_as_timed=4.2).floor_share == pytest.approx(4 / 4.5)
    assert Timed(seconds=1.0, vs_vanilla=1.5, floor=4.0, floor_as_timed=4.2).timed_share == pytest.approx(4.2 / 4.5)


@pytest.mark.parametrize("typed", [*TIMED, "finetune,constraint=spd", "finetune,train=lora", "kd,moving=ema"])
def test_a_step_is_a_whole_one(typed: str) -> None:
    """With a learning rate, it moves what the method trains, and the average that it keeps."""
    one = made(typed)
    one.method.recipe = one.method.recipe.changed(lr=0.1)
    step = one.step()
    before = {name: value.clone() for name, value in one.method.student.named_parameters()}
    average = one.method.moving_average
    kept = None if average is None else [value.clone() for value in average.model.parameters()]
    step(), step()
    trained = {id(p) for group in one.method.trained for p in [group]}
    moved = {name for name, value in one.method.student.named_parameters() if not torch.equal(value, before[name])}
    assert moved and moved <= {name for name, p in one.method.student.named_parameters() if id(p) in trained}
    assert kept is None or any(not torch.equal(a, b) for a, b in zip(kept, average.model.parameters(), strict=True))
    assert all(p.grad is None for p in one.method.trained)


def test_what_is_new_at_every_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, seen = made("lipsum"), []
    encode = FrozenText.encode
    monkeypatch.setattr(FrozenText, "encode", lambda text, tokens: seen.append(tokens) or encode(text, tokens))
    step = one.step()
    step(), step()
    assert len(seen) == 2 and not torch.equal(*seen)


def test_texts_count_by_arithmetic_or_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    one = made("flyp")
    monkeypatch.setattr(methods, "seconds_by_round", lambda *_: {"part": [1.0, 9.0, 2.0], "whole": [4.0, 4.0, 4.0]})
    assert one.floor_as_timed(3, wall=False) == pytest.approx(3 + 3 * 0.5)
    assert one.floor < 3.5  # as before


def test_the_table_and_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--model=tiny", "--batch=4", "--rounds=1", "--device=cpu", "--precision=32-true", "--clock=cpu"]
    bench.main([*line, "--json", str(tmp_path / "b.json"), "--whole-prompts", "--methods", "finetune", "flyp"])
    record = json.loads((tmp_path / "b.json").read_text())
    assert list(record["methods"]) == ["finetune", "flyp", "flyp, prompts of whole length"]
    for values in record["methods"].values():
        assert values.keys() == {*COLUMNS, "floor_as_timed"}
        assert values["floor_share"] == pytest.approx(values["floor"] / values["forwards"])
        assert values["timed_share"] == pytest.approx(values["floor_as_timed"] / values["forwards"])
        assert values["forwards"] == pytest.approx(3 * values["vs_vanilla"])
    assert record["methods"]["finetune"]["floor_as_timed"] == record["methods"]["finetune"]["floor"] == 3
    assert record["clock"] == "cpu" and "share of floor" in capsys.readouterr().out
