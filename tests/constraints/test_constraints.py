"""Constraints against the public implementations, number by number, and what they promise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustft.constraints.ftp import TrainableProjection
from robustft.constraints.l2sp import L2SP, DecoupledL2SP
from robustft.constraints.spd import SelectiveProjection
from robustft.training.constraint import Constraint
from tests.golden.neighbours import DTYPES, Golden


class Weights(nn.Module):
    """Named tensors in the place of a model."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value.clone()))


def weights(golden: Golden, what: str, names: list[str]) -> Weights:
    return Weights({name: golden[f"{what}.{name}"] for name in names})


def attached(constraint: Constraint, student: nn.Module, optimizer: torch.optim.Optimizer) -> Constraint:
    constraint.attach(student, torch.device("cpu"))
    constraint.stepped_by = optimizer
    return constraint


def six_steps(
    golden: Golden, student: Weights, constraint: Constraint, optimizer: torch.optim.Optimizer, watch: Callable = list
) -> tuple[dict[str, Tensor], list[Any]]:
    """Every tensor after each of the golden gradients, [6, …], and what ``watch`` sees before each projection."""
    attached(constraint, student, optimizer)
    names, seen, found = [name for name, _ in student.named_parameters()], [], []
    for step in range(6):
        for name, weight in student.named_parameters():
            weight.grad = golden[f"grads.{name}"][step].clone()
        constraint.add_gradient()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(watch())
        constraint.project()
        found.append([weight.detach().clone() for weight in student.parameters()])
    return {name: torch.stack(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}, seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_l2sp(dtype) -> None:
    golden = Golden("l2sp", dtype)
    names = ["weight", "bias", "unmoved"]
    student, alpha = weights(golden, "param", names), golden["alpha"]
    constraint = L2SP(weights(golden, "anchor", names), head=True, weight=alpha)
    attached(constraint, student, torch.optim.SGD(student.parameters(), 0.1))
    penalty = sum(move.square().sum() for move in constraint.moves())
    golden.close(penalty, "penalty")
    logits = golden["logits"].requires_grad_()
    loss = nn.functional.cross_entropy(logits, golden["labels"])
    golden.close(loss + alpha * penalty, "total.loss")
    for weight in student.parameters():
        weight.grad = torch.zeros_like(weight)
    constraint.add_gradient()
    for name, weight in student.named_parameters():
        golden.close(weight.grad, f"total.grad.{name}")


def test_decoupled_l2sp_is_a_decay_towards_the_anchor() -> None:
    """At the learning rate of each group, after the step."""
    torch.manual_seed(0)
    student, anchor = (Weights({"a": torch.randn(3, 2), "b": torch.randn(4)}) for _ in range(2))
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    groups = [{"params": [student.a], "lr": 0.1}, {"params": [student.b], "lr": 0.6, "decay_scale": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    optimizer.load_state_dict(optimizer.state_dict())  # as a resumed run does
    constraint = attached(DecoupledL2SP(anchor, head=True, weight=0.5), student, optimizer)
    for weight in student.parameters():
        weight.grad = torch.ones_like(weight)
    constraint.add_gradient()
    optimizer.step()
    constraint.project()
    for name, rate, decay in (("a", 0.1, 0.1), ("b", 0.6, 0.3)):  # of a head in other units
        stepped = before[name] - rate
        expected = stepped - decay * 0.5 * (stepped - getattr(anchor, name))
        torch.testing.assert_close(getattr(student, name), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["a", "b", "c", "zero_anchor"])
def test_spd(case: str, dtype) -> None:
    golden = Golden("spd", dtype)
    names = golden["names"]
    student, anchor = weights(golden, "init", names), weights(golden, "anchor", names)
    if case == "zero_anchor":
        anchor = Weights({name: torch.zeros_like(weight) for name, weight in student.named_parameters()})
    constraint = SelectiveProjection(
        anchor, head=True, weight=golden[f"lambda_{'b' if case == 'zero_anchor' else case}"]
    )
    optimizer = torch.optim.Adam(student.parameters(), golden["lr"])
    found, opposed = six_steps(golden, student, constraint, optimizer, lambda: constraint.opposed.clone())
    assert torch.equal(torch.stack(opposed).long(), golden[f"{case}.condition_met"].long())
    for name in names:
        golden.close(found[name], f"{case}.param.{name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["adam_a", "adam_b", "sgd_a"])
def test_ftp(case: str, dtype) -> None:
    """The head, which is not held, goes its own way; the state is handed on in the middle."""
    golden = Golden("ftp", dtype)
    names = golden["names"]
    anchor = Weights({name: golden[f"anchor.{name}"] for name in names if name != "head"})
    constraint = TrainableProjection(anchor, head=False, shrinking=golden[f"k_{case[-1]}"])
    student = weights(golden, "init", names)
    if case == "sgd_a":
        optimizer: Any = torch.optim.SGD(student.parameters(), golden["lr_sgd"], momentum=0.9)
    else:
        optimizer = torch.optim.Adam(student.parameters(), golden["lr_adam"])
    radii: list[Tensor] = []
    project = constraint.project

    def watched() -> None:
        project()
        radii.append(constraint.radii.clone())
        state = constraint.state_dict()
        constraint.__init__(anchor, False, shrinking=constraint.shrinking)  # type: ignore[misc]
        constraint.load_state_dict(state)
        constraint.attach(student, torch.device("cpu"))

    constraint.project = watched  # type: ignore[method-assign]
    found, _ = six_steps(golden, student, constraint, optimizer)
    golden.close(torch.stack(radii), f"{case}.gamma")
    for name in names:
        golden.close(found[name], f"{case}.param.{name}")


MADE: dict[str, Callable[[nn.Module], Constraint]] = {
    "l2sp": lambda anchor: L2SP(anchor, head=True, weight=0.3),
    "decoupled": lambda anchor: DecoupledL2SP(anchor, head=True, weight=0.3),
    "spd": lambda anchor: SelectiveProjection(anchor, head=True, weight=1.0),
    "ftp": lambda anchor: TrainableProjection(anchor, head=True),
}


@pytest.mark.parametrize("name", MADE)
def test_piece_by_piece_is_the_same_as_at_once(name: str) -> None:
    torch.manual_seed(0)
    start = {"a": torch.randn(5, 4), "b": torch.randn(6), "c": torch.randn(2, 3, 2), "d": torch.randn(())}
    gradients = [{name: torch.randn_like(value) for name, value in start.items()} for _ in range(4)]
    found = []
    for pieces in ([slice(0, 4)], [slice(0, 1), slice(1, 3), slice(3, 4)]):
        student, anchor = Weights(start), Weights(start)
        optimizer = torch.optim.Adam(student.parameters(), 0.1)
        constraint = attached(MADE[name](anchor), student, optimizer)
        assert constraint.pieces == [slice(0, 4)]
        constraint.pieces = pieces
        for step in gradients:
            for label, weight in student.named_parameters():
                weight.grad = step[label].clone()
            constraint.add_gradient()
            optimizer.step()
            constraint.project()
        found.append([weight.detach() for weight in student.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert any(not torch.equal(weight, value) for weight, value in zip(found[0], start.values(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_spd_never_lengthens_where_the_gradient_opposes(seed: int) -> None:
    """Of a tensor the distance from the anchor is, with λ = 1, at most what it was before the step."""
    torch.manual_seed(seed)
    anchor = Weights({"a": torch.randn(5, 4), "b": torch.randn(6), "c": torch.randn(())})
    student = Weights({name: weight + 0.1 * torch.randn_like(weight) for name, weight in anchor.named_parameters()})
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    constraint = attached(SelectiveProjection(anchor, head=True, weight=1.0), student, optimizer)
    opposed = shortened = 0
    for _ in range(40):
        before = [move.norm() for move in constraint.moves()]
        for weight in student.parameters():
            weight.grad = torch.randn_like(weight)
        constraint.add_gradient()
        optimizer.step()
        stepped = [move.norm() for move in constraint.moves()]
        constraint.project()
        for k, move in enumerate(constraint.moves()):
            if constraint.opposed[k]:
                opposed += 1
                shortened += bool(stepped[k] > before[k])
                assert move.norm() <= before[k] * (1 + 1e-6)
            else:
                assert move.norm() == stepped[k]
    assert opposed > shortened > 10


@pytest.mark.parametrize("kind", [L2SP, DecoupledL2SP, SelectiveProjection])
def test_a_weight_of_zero_changes_nothing(kind) -> None:
    torch.manual_seed(0)
    anchor = Weights({"a": torch.randn(5, 4), "b": torch.randn(6)})
    runs = []
    for held in (False, True):
        torch.manual_seed(1)
        student = Weights({"a": torch.randn(5, 4), "b": torch.randn(6)})
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
        constraint = attached(kind(anchor, head=True, weight=0.0), student, optimizer)
        for _ in range(5):
            for weight in student.parameters():
                weight.grad = torch.randn_like(weight)
            if held:
                constraint.add_gradient()
            optimizer.step()
            if held:
                constraint.project()
        runs.append(list(student.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
