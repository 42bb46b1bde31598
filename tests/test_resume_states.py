"""A run that is stopped and resumed ends bit for bit as one that is not, whatever keeps a state of its own."""

import pytest
import torch

from robustft.training.checkpoints import LAST
from tests.small import do, work  # noqa: F401 (a fixture)
from tests.test_resume import same_results, stops  # noqa: F401 (a fixture)

TWO = ("trainer.accumulate_grad_batches=2",)
STATES = {
    "a teacher and a result that move, two constraints": (
        *("method=kd", "moving=ema", "moving.decay=0.9", "result=average", "constraint=[l2sp,spd]"),
        *TWO,
    ),
    "learnt radii, a teacher of the whole way": ("mask=object", "constraint=ftp", "moving=trajectory", *TWO),
    "low-rank updates, random texts": ("method=lipsum", "train=lora", "moving=trajectory", "result=average", *TWO),
    "tokens, decoupled decay at rates of layers": (
        *("method=ldifs", "constraint=l2sp_decoupled", "train=layer_decay", "schedule=warmup_cosine"),
        *TWO,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", STATES)
def test_it_goes_on_where_it_was(work, stops, what):  # noqa: F811
    settings, folder, whole = STATES[what], work / what.replace(" ", "-") / "stopped", work / what.replace(" ", "-")
    do(whole, *settings)
    stops[1].append(("step", 8, 0))  # micro-batches: after the fourth step of six
    with pytest.raises(KeyboardInterrupt):
        do(folder, *settings)
    assert not (folder / "results.json").exists()
    do(folder, *settings, resume=True)
    assert same_results(whole, folder)
    one, other = (torch.load(path / LAST, weights_only=True) for path in (whole, folder))
    assert equal(one["state_dict"], other["state_dict"]) and equal(one["constraints"], other["constraints"])
    assert equal(one["optimizer_states"], other["optimizer_states"])


def equal(one, other) -> bool:
    """Whether two nests of dictionaries, lists, tensors and numbers are the same."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other
