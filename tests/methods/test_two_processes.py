"""Two processes take the step of one, for every method that trains, with and without masks."""

import json

import pytest
from safetensors.torch import load_file

from robustft.cli import described, sources
from tests.methods.test_flyp import tuned, two_processes_against_one
from tests.small import command, work  # noqa: F401 (a fixture)
from tests.test_training import difference

TAKES = {name: described.takes("method", name) for name in sources.groups()["method"]}
TRAINING = [name for name, takes in TAKES.items() if takes["trains"]]
# Of the fills, that which takes no patches from the images that a process has: their pool is another one.
MASKED = ("mask=object", "fill=none")
PLAIN = [(name, ("mask=none",) if TAKES[name]["masks"] else ()) for name in TRAINING]
WITH_MASKS = [(name, MASKED) for name in TRAINING if TAKES[name]["masks"]]
OPENS = {"flyp": ("beta=3",)}  # where masks are idle as it comes


@pytest.mark.slow
@pytest.mark.parametrize(("method", "settings"), [*PLAIN, *WITH_MASKS], ids=str)
def test_two_processes_give_the_gradients_of_one(work, tmp_path, method: str, settings: tuple[str, ...]) -> None:  # noqa: F811
    """In float64, the gradients of the first step: of one process, of two, and of two with two micro-batches each."""
    more = OPENS.get(method, ()) if settings == MASKED else ()
    two_processes_against_one(tmp_path, f"method={method}", *settings, *more, f"init={tuned(work)}")


@pytest.mark.slow
@pytest.mark.parametrize("own", [("method=finetune",), ("method=flyp", "model.pretrained=embedded")], ids=str)
def test_sets_smaller_than_a_batch_leave_a_process_without_images(tmp_path, own: tuple[str, ...]) -> None:
    """It takes part all the same: in evaluations of the hold-out while training, and of all sets."""
    typed = (*own, "data.eval_batch_size=64", "data.holdout=5", "data.test_images=3")
    results, weights = [], []
    for devices in (1, 2):
        several = ("trainer.devices=2", "trainer.strategy=ddp") if devices == 2 else ()
        more = (f"hydra.run.dir=d{devices}", *several)
        answer = command(tmp_path, *typed, *more, ROBUSTFT_CACHE=str(tmp_path / f"cache{devices}"))
        assert answer.returncode == 0, answer.stderr[-3000:]
        results.append(json.loads((tmp_path / f"d{devices}" / "results.json").read_text()))
        weights.append(load_file(tmp_path / f"d{devices}" / "model.safetensors"))
    for name in ("id", "holdout"):
        assert [results[k][name]["n"] for k in (0, 1)] == ([5, 5] if name == "holdout" else [3, 3])
        assert results[0][name]["top1"] == results[1][name]["top1"]
    assert results[0]["ood_avg"] == results[1]["ood_avg"]
    for name, value in weights[0].items():
        assert difference(name, value, weights[1][name]) < 5e-5, name
