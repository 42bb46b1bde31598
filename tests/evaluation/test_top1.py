"""Top-1 against a second, plain implementation and hand-made logits with known answers."""

import math

import pytest
import torch

from robustft.evaluation.results import Score
from robustft.evaluation.top1 import Top1, predict


def plain_top1(logits: list[list[float]], labels: list[int], right: dict[int, set[int]]) -> float:
    """Image by image: of the classes that are right for any label, is the largest right for this one?"""
    known = sorted(set().union(*right.values()))
    hits = 0
    for row, label in zip(logits, labels, strict=True):
        best = max(known, key=lambda k: row[k])
        hits += best in right[label]
    return hits / len(labels)


def table(right: dict[int, set[int]], classes: int) -> torch.Tensor:
    correct = torch.zeros(len(right), classes, dtype=torch.bool)
    for label, set_ in right.items():
        correct[label, sorted(set_)] = True
    return correct


def test_class_subset_removes_the_other_logits():
    correct = table({0: {1}, 1: {3}}, classes=5)
    logits = torch.tensor([[9.0, 2.0, 9.0, 1.0, 9.0], [9.0, 2.0, 9.0, 1.0, 9.0], [0.0, -3.0, 0.0, -2.0, 0.0]])
    assert predict(logits, correct.any(0)).tolist() == [1, 1, 3]
    metric = Top1(correct)
    metric.update(logits, torch.tensor([0, 1, 1]))
    assert metric.compute().item() == 2 / 3


def test_label_sets_accept_any_of_their_classes():
    right = {0: {0, 4}, 1: {2}}
    logits = torch.tensor(
        [
            [0.0, 9.0, 1.0, 9.0, 2.0],  # 4 wins among {0, 2, 4}: right for label 0
            [3.0, 9.0, 1.0, 9.0, 2.0],  # 0 wins: right for label 0 too
            [3.0, 9.0, 1.0, 9.0, 2.0],  # 0 wins: wrong for label 1
            [0.0, 9.0, 5.0, 9.0, 2.0],  # 2 wins: right for label 1
        ]
    )
    metric = Top1(table(right, classes=5))
    metric.update(logits, torch.tensor([0, 0, 1, 1]))
    assert metric.score() == Score(top1=3 / 4, n=4)


def test_numeric_folder_order():
    """A perfect model on folders named 0…11: sorted as strings, all labels but two are permuted."""
    folders = [str(k) for k in range(12)]
    numbers = torch.tensor([int(folder) for folder in folders])
    as_strings = torch.tensor([sorted(folders).index(folder) for folder in folders])
    for labels, hits in ((numbers, 12), (as_strings, 2)):
        metric = Top1(torch.eye(12, dtype=torch.bool))
        metric.update(torch.eye(12), labels)
        assert metric.score() == Score(top1=hits / 12, n=12)


@pytest.mark.parametrize("seed", range(3))
def test_matches_plain_implementation(seed: int):
    generator = torch.Generator().manual_seed(seed)
    classes, n = 30, 500
    chosen = torch.randperm(classes, generator=generator).tolist()
    right = {
        0: set(chosen[:1]),
        1: set(chosen[1:4]),
        2: set(chosen[4:6]),
        3: set(chosen[6:7]),
        4: set(chosen[3:5]),
    }
    labels = torch.randint(0, len(right), (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    metric = Top1(table(right, classes))
    for rows in torch.arange(n).split(64):
        metric.update(logits[rows], labels[rows])
    assert metric.compute().item() == plain_top1(logits.tolist(), labels.tolist(), right)
    assert metric.compute().dtype == torch.float64


def test_states_add_up_over_processes():
    """Counts of the parts, summed as all-reduce does, give the value of the whole for any split."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(101, 7, generator=generator),
        torch.randint(0, 7, (101,), generator=generator),
    )
    whole = Top1(torch.eye(7, dtype=torch.bool))
    whole.update(logits, labels)
    parts = [Top1(torch.eye(7, dtype=torch.bool)) for _ in range(4)]
    for rank, part in enumerate(parts):
        part.update(logits[rank::4], labels[rank::4])
        assert {name: reduce.__name__ for name, reduce in part._reductions.items()} == {
            "hits": "dim_zero_sum",
            "total": "dim_zero_sum",
        }
    hits, total = sum(part.hits for part in parts), sum(part.total for part in parts)
    assert (hits / total).item() == pytest.approx(whole.compute().item())
    assert int(total) == 101


def test_table_moves_with_the_module_but_is_not_saved():
    metric = Top1(torch.eye(3, dtype=torch.bool))
    assert metric.state_dict() == {}
    assert metric.to("meta").correct.device.type == "meta"


def test_without_images_is_nan():
    with pytest.warns(UserWarning, match="compute"):
        assert math.isnan(Top1(torch.eye(3, dtype=torch.bool)).compute().item())
