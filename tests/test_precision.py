"""Precisions and strategies: what is offered works in a whole run, what does not work is refused in one line."""

import pytest
import torch

from robustft.cli import checks
from robustft.common import configs
from robustft.common.errors import UserError
from robustft.training.trainer import make_trainer, resolve_precision
from tests.small import assert_refused, command, composed, do, work  # noqa: F401 (a fixture)
from tests.test_resume import go_on_until_done, same_results, stops  # noqa: F401 (a fixture)

OFFERED = ["auto", "32-true", "bf16-mixed", "32", "bf16"]
NOT_OFFERED = ["64-true", "64", "bf16-true", "16-true", "transformer-engine", "transformer-engine-float16", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", OFFERED)
def test_what_is_offered_works_in_a_whole_run(work, precision):  # noqa: F811
    settings = (f"trainer.precision={precision}", "trainer.max_epochs=1")
    record = do(work / precision, *settings, "disagreement=1")
    assert record["holdout"] and len(list((work / precision / "gallery").glob("*.png"))) == 3
    again = do(
        work / f"{precision}-again", settings[0], "method=evaluate", f"checkpoint={work / precision}/model.safetensors"
    )
    assert again["id"] == record["id"] and again["ood"] == record["ood"]


@pytest.mark.slow
def test_resumed_in_bfloat16(work, stops):  # noqa: F811
    seen, wanted = stops
    settings = ("trainer.precision=bf16-mixed", "trainer.max_epochs=1")
    do(work / "whole", *settings)
    points = list(dict.fromkeys(seen))
    go_on_until_done(work / "stopped", settings, wanted, points)
    assert points and same_results(work / "whole", work / "stopped")


@pytest.mark.parametrize("precision", NOT_OFFERED)
def test_others_are_refused(precision):
    with pytest.raises(UserError, match=f"trainer.precision={precision}: expected one of"):
        checks.check(composed(f"trainer.precision={precision}"))


@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_float16_needs_a_gpu(work, precision):  # noqa: F811
    with pytest.raises(UserError, match="CPUs do not train in float16. Use bf16-mixed"):
        do(work / "float16", f"trainer.precision={precision}")
    assert not (work / "float16" / "last.ckpt").exists() and not (work / "float16" / "results.json").exists()


def test_precisions_have_one_name_each(tmp_path):
    """They are part of what scores and features are kept by."""
    assert [resolve_precision(name, "cpu") for name in ("32", 32, "bf16")] == ["32-true", "32-true", "bf16-mixed"]
    options = configs.plain(composed("trainer.precision=bf16"))["trainer"]
    assert make_trainer(options, tmp_path).precision == "bf16-mixed"
    assert resolve_precision("auto", "cpu") in ("32-true", "bf16-mixed")


def test_auto_looks_at_the_device_that_trains(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert resolve_precision("auto", "auto") == "32-true" and resolve_precision("16", "auto") == "16-mixed"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    for has_bf16, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        assert resolve_precision("auto", "gpu") == expected


@pytest.mark.parametrize(
    "strategy",
    ["fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_2", "ddp_spawn", "ddp_notebook", "single_device", "xla"],
)
def test_strategies_that_cannot_work_are_refused(strategy):
    with pytest.raises(UserError, match=f"trainer.strategy={strategy}: expected one of auto, ddp.*two backward passes"):
        checks.check(composed(f"trainer.strategy={strategy}"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"])
def test_other_kinds_of_ddp(tmp_path, strategy):
    answer = command(
        tmp_path, f"trainer.strategy={strategy}", "trainer.devices=2", "trainer.max_epochs=1", "hydra.run.dir=run",
        ROBUSTFT_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert (tmp_path / "run" / "results.json").exists()


def test_refused_at_the_command_line(tmp_path):
    assert_refused(
        command(tmp_path, "trainer.strategy=deepspeed"), "trainer.strategy=deepspeed", "expected one of auto"
    )
