import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from robustft.bench import __main__ as bench
from robustft.bench import names, timing
from robustft.bench.measure import median_seconds, peak_bytes
from robustft.bench.steps import Bench
from robustft.cli.commands import COMMANDS
from robustft.common.errors import UserError

VARIANTS = {"vanilla", "direct", "exact", "cached"}
KEYS = {"images_per_s", "vs_direct", "vs_vanilla", "floor_share", "peak_bytes"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    asked: list[str] = []

    def peak(arguments: list[str]) -> int:
        asked.append(arguments[-1])
        return 1_000_000

    monkeypatch.setattr(timing, "peak_bytes_apart", peak)
    path = tmp_path / "new" / "bench.json"
    options = f"--model=tiny --batch=4 --rounds=1 --device=cpu --precision={precision} --json={path}"
    bench.main(options.split())
    record = json.loads(path.read_text())
    assert record["variants"].keys() == VARIANTS | {f"{name}_fp32" for name in VARIANTS}
    for name, values in record["variants"].items():
        assert values.keys() == KEYS
        assert all(value > 0 for value in values.values()), name
    assert record["variants"]["direct_fp32"]["vs_direct"] == 1
    assert record["variants"]["vanilla"]["vs_vanilla"] == record["variants"]["vanilla_fp32"]["vs_vanilla"] == 1
    exact = record["variants"]["exact_fp32"]
    assert exact["floor_share"] == pytest.approx(8 / 3 / exact["vs_vanilla"])
    assert len(asked) == (8 if precision == "bf16-mixed" else 4)
    assert (record["variants"]["exact"] == exact) == (precision == "32-true")
    assert [file.name for file in path.parent.iterdir()] == ["bench.json"]


def test_every_other_round_goes_backwards() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = median_seconds(steps, 2, "cpu", lambda _: None)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert seconds.keys() == steps.keys()


if Path("/proc/self/clear_refs").exists():  # Linux

    def test_peak_memory_of_a_step() -> None:
        def step() -> None:
            torch.ones(16 * 2**20)  # 64 MiB, and half of it after
            torch.ones(8 * 2**20)

        assert 60 * 2**20 < peak_bytes(step, "cpu") < 80 * 2**20


def test_another_step_than_the_direct_one_is_noticed() -> None:
    made = Bench("tiny", batch=4, precision="32-true", device="cpu")
    assert made.check() < 1e-4
    with torch.no_grad():
        made.direct_student.visual.transformer.resblocks[1].mlp.c_fc.bias += 0.01
    with pytest.raises(UserError, match="differ"):
        made.check()


def test_what_a_step_is_worth() -> None:
    made = Bench("tiny", batch=4, precision="32-true", device="cpu")
    worth = {kind: made.forwards(kind) for kind in (*names.VARIANTS, *names.MORE)}
    assert worth == {
        "vanilla": 3, "direct": 9, "exact": 8, "cached": 7, "one_backward": 8,
        "last_layer": 7.25, "no_fill": 3 + 4 * 33 / 65,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["last_layer", "no_fill"])
def test_cheaper_steps_leave_gradients(kind: str) -> None:
    made = Bench("tiny", batch=4, precision="32-true", device="cpu")
    assert float(made.backward(kind)()) > 0
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.student.parameters())


def test_it_says_what_it_is_doing_and_what_its_rows_are(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(timing, "peak_bytes_apart", lambda _: 1_000_000)
    monkeypatch.setenv("COLUMNS", "200")
    bench.main("--model=tiny --batch=4 --rounds=1 --device=cpu --precision=32-true".split())
    said = capsys.readouterr()
    assert said.err.startswith("0 of 13 done, now models, and a check"), said.err
    for title in ("vanilla fine-tuning, 32-true", "the method, written directly, 32-true", "the method, here, 32-true"):
        assert said.out.count(title) == 1, said.out
    assert "Share of floor: what the passes" in " ".join(said.out.split())


@pytest.mark.parametrize("command", ["report", "dashboard", "bench"])
def test_help_has_no_marks(command: str, capsys) -> None:
    with pytest.raises(SystemExit):
        import_module(COMMANDS[command].module).main(["--help"])
    said = capsys.readouterr().out
    assert "`" not in said and "python -m" not in said.partition("\n\n")[2].partition("\n\n")[0]
