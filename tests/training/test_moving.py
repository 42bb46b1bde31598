"""Moving averages against the public implementations, and against their direct sums."""

from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn

from robustft.training.moving import MovingAverage, ema, trajectory
from tests.golden.neighbours import DTYPES, Golden


class Pair(nn.Module):
    """Two tensors."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())


def averages(rule, start: list, students: list, steps: int) -> list[torch.Tensor]:
    """The average of each tensor after every step, [steps, …]."""
    average = MovingAverage(Pair(*start), rule, steps)
    found = []
    for values in zip(*students, strict=True):
        average.update(Pair(*values))
        found.append([weight.clone() for weight in average.model.parameters()])
    return [torch.stack(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_teacher_of_carot(dtype) -> None:
    golden = Golden("carot", dtype)
    rule = partial(ema, decay=0.9, every=golden["ema.update_every"], first_decay=0.05, rise=golden["ema.warm_up"])
    start, students = ([golden[f"ema.{what}_{name}"] for name in "ab"] for what in ("init", "student"))
    for name, ours in zip("ab", averages(rule, start, students, golden["ema.total_steps"]), strict=True):
        golden.close(ours, f"ema.teacher_{name}")


@pytest.mark.parametrize("steps", [1000, 25000])
def test_when_the_teacher_of_carot_moves(steps: int) -> None:
    for step, momentum in Golden("carot", torch.float64)[f"ema.schedule_{steps}"].items():
        weight = ema(int(step), steps, decay=0.9, every=500, first_decay=0.05, rise=0.2)
        assert weight == (0 if momentum == "no update" else pytest.approx(1 - momentum, rel=1e-12))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["short", "long", "every2"])
def test_the_teacher_of_tracer(case: str, dtype) -> None:
    golden = Golden("tracer", dtype)
    every = {"every": 2, "count": "updates"} if case == "every2" else {}
    steps = golden["avg.total_long" if case == "long" else "avg.total_short"]
    rule = partial(trajectory, beta=golden["avg.beta"], **every)
    start, students = ([golden[f"avg.{what}_{name}"] for name in "ab"] for what in ("init", "student"))
    a, b = averages(rule, start, students, steps)
    golden.close(a, f"avg.{case}.teacher_a")
    if case != "every2":
        golden.close(b, f"avg.{case}.teacher_b")
    else:
        moves = [rule(step, steps) > 0 for step in range(steps)]
        assert torch.tensor(moves).cumsum(0).tolist() == golden["avg.every2.updates_so_far"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_average_of_clipood(dtype) -> None:
    golden = Golden("clipood", dtype)
    start, student = golden["bma.init"], golden["bma.student"]
    rule = partial(trajectory, beta=golden["bma.beta"])
    golden.close(averages(rule, [start, start], [student, student], golden["bma.total"])[0], "bma.average")


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0, 1.5])
def test_a_trajectory_average_is_its_direct_sum(beta: float) -> None:
    steps, random = 37, torch.Generator().manual_seed(0)
    path = torch.randn(steps + 1, 4, 3, generator=random, dtype=torch.float64)
    density = torch.from_numpy(stats.beta(beta, beta).pdf([(k + 0.5) / (steps + 1) for k in range(steps + 1)]))
    found = averages(partial(trajectory, beta=beta), [path[0]] * 2, [path[1:]] * 2, steps)[0]
    for k in range(steps):
        a = density[: k + 2]
        torch.testing.assert_close(
            found[k], torch.einsum("k,kij->ij", a, path[: k + 2]) / a.sum(), rtol=1e-12, atol=1e-14
        )
    rare = averages(partial(trajectory, beta=beta, every=5), [path[0]] * 2, [path[1:]] * 2, steps)[0]
    stands, before = torch.zeros(steps + 1, dtype=torch.float64), 0
    stands[0] = density[0]
    for k in [*range(1, steps + 1, 5), steps]:  # each of these students stands for the steps up to it
        stands[k] += density[before + 1 : k + 1].sum()
        before = k
    expected = torch.einsum("k,kij->ij", stands, path) / density.sum()
    torch.testing.assert_close(rare[-1], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.99])
def test_an_exponential_average_is_its_direct_sum(decay: float) -> None:
    steps, random = 23, torch.Generator().manual_seed(1)
    path = torch.randn(steps + 1, 5, generator=random, dtype=torch.float64)
    found = averages(partial(ema, decay=decay), [path[0]] * 2, [path[1:]] * 2, steps)[0]
    weights = torch.tensor([(1 - decay) * decay ** (steps - k) for k in range(steps + 1)], dtype=torch.float64)
    weights[0] = decay**steps
    torch.testing.assert_close(found[-1], weights @ path, rtol=1e-12, atol=1e-15)


def test_how_far_an_average_lags() -> None:
    """Of a student that moves on a straight line."""
    steps = 1000
    line = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps

    def at_the_end(rule) -> float:
        return float(averages(rule, [line[0] * 0] * 2, [line] * 2, steps)[0][-1])

    assert at_the_end(trajectory) == pytest.approx(0.5, abs=1e-3)
    assert at_the_end(partial(trajectory, every=100)) == pytest.approx(0.5, abs=0.06)
    assert at_the_end(partial(trajectory, every=100, count="updates")) == pytest.approx(0.33, abs=0.02)
    assert at_the_end(ema) == pytest.approx(0.8, abs=0.01)  # a fifth of the run behind
    assert at_the_end(partial(ema, every=20)) == pytest.approx(0.8, abs=0.02)


def test_it_is_kept_in_float32_and_goes_on_where_it_was() -> None:
    half = nn.Linear(3, 2).bfloat16()
    average = MovingAverage(half, trajectory, steps=9)
    assert {weight.dtype for weight in average.model.parameters()} == {torch.float32}
    for _ in range(4):
        average.update(half)
    average.train()
    assert not average.model.training and not any(weight.requires_grad for weight in average.parameters())
    twin = MovingAverage(nn.Linear(3, 2), trajectory, steps=9)
    twin.load_state_dict(average.state_dict())
    assert twin.done == 4
    student = nn.Linear(3, 2)
    average.update(student)
    twin.update(student)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), twin.parameters(), strict=True))
