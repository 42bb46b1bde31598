"""The last line of a run: what it says in every case, and that it calls nothing a gain that chance would give."""

import numpy as np
import pytest

from robustft.evaluation.results import Score, Scores, results_record
from robustft.evaluation.verdict import Change, verdict


def record(ids=(0.6, 0.8), ood=((0.7, 0.7), (0.5, 0.5)), known=None, method="kd", n=2000, partial=False, zeroshot=True):
    def scores(k: int) -> Scores:
        return Scores("val", Score(ids[k], n), {f"s{i}": Score(pair[k], n) for i, pair in enumerate(ood)})

    return results_record(
        scores(1),
        **{"name": "r", "method": method, "model": "m", "seed": 0, "partial": partial, "wall_s": 1, "config": {}},
        versions={},
        zeroshot=scores(0) if zeroshot else None,
        retention=None
        if known is None
        else {
            f"t{i}": {"top1": after, "zeroshot_top1": before, "top1_own_text": None, "n": n}
            for i, (before, after) in enumerate(known)
        },
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"ood": ((0.7, 0.75), (0.5, 0.57)), "known": ((0.8, 0.8),)},
            "It helped on ID and under shift, and no loss is told from chance: ID 60.0 → 80.0 (+20.0), OOD 60.0 → 66.0"
            " (+6.0), retention 80.0 → 80.0 (0.0, chance moves it by 2.5).",
        ),
        (
            {"ood": ((0.7, 0.6), (0.5, 0.2)), "known": ((0.8, 0.3), (0.9, 0.9))},
            "It helped on ID, at the cost of robustness and what the model knew of other tasks: ID 60.0 → 80.0 (+20.0),"
            " OOD 60.0 → 40.0 (−20.0), retention 85.0 → 60.0 (−25.0). Forgotten most: t0 (−50.0). Lost most under: s1"
            " (−30.0).",
        ),
        ({"ood": ()}, "It helped on ID: ID 60.0 → 80.0 (+20.0)."),
        ({"ids": (0.6, 0.5), "ood": ()}, "It did not help: ID fell: ID 60.0 → 50.0 (−10.0)."),
        (
            {"ids": (0.6, 0.5), "ood": ((0.5, 0.3),), "partial": True},
            "It did not help: ID fell, and so did robustness (a partial evaluation): ID 60.0 → 50.0 (−10.0), OOD 50.0 →"
            " 30.0 (−20.0).",
        ),
        (
            {"ids": (0.6, 0.6), "ood": ((0.5, 0.6),)},
            "It helped under shift, and left ID as it was: ID 60.0 → 60.0 (0.0, chance moves it by 3.0), OOD 50.0 →"
            " 60.0 (+10.0).",
        ),
        (
            {"ids": (0.6, 0.61), "ood": ((0.5, 0.51),)},
            "It changed nothing that chance would not: ID 60.0 → 61.0 (+1.0, chance moves it by 3.0), OOD 50.0 → 51.0"
            " (+1.0, chance moves it by 3.1).",
        ),
        (
            {"ids": (0.6, 0.61), "ood": ((0.5, 0.3),)},
            "It did not help: ID is as it was, and it cost robustness: ID 60.0 → 61.0 (+1.0, chance moves it by 3.0),"
            " OOD 50.0 → 30.0 (−20.0).",
        ),
        (
            {"method": "zeroshot", "ids": (0.6, 0.6), "known": ((0.8, 0.8), (0.6, 0.6))},
            "The zero-shot model itself: ID 60.0, OOD 60.0, retention 70.0.",
        ),
        ({"zeroshot": False, "ood": ()}, "No zero-shot model to compare with: ID 80.0."),
    ],
)
def test_what_it_says(given, expected) -> None:
    assert verdict(record(**given)) == expected


def test_few_images_prove_little() -> None:
    assert verdict(record(ids=(0.6, 0.8), ood=(), n=10)).startswith("It changed nothing that chance would not")


@pytest.mark.parametrize(("n", "chance"), [(1, "100.0"), (4, "63.3"), (128, "2.2")])
def test_all_right_leaves_something_to_chance(n: int, chance: str) -> None:
    assert verdict(record(ids=(1.0, 1.0), ood=(), n=n)) == (
        f"It changed nothing that chance would not: ID 100.0 → 100.0 (0.0, chance moves it by {chance})."
    )


def test_one_image_proves_nothing() -> None:
    assert verdict(record(ids=(0.0, 1.0), ood=(), n=1)).startswith("It changed nothing that chance would not")


def test_two_accuracies_are_told_apart_as_agresti_and_caffo_do() -> None:
    for n, right in ((10, (3, 8)), (10, (1, 8)), (30, (15, 23)), (30, (14, 23))):
        p, q = ((x + 1) / (n + 2) for x in right)
        apart = abs(q - p) > 1.96 * ((p * (1 - p) + q * (1 - q)) / (n + 2)) ** 0.5
        assert Change.of([(right[0] / n, right[1] / n, n)]).direction == apart


def test_chance_is_what_drawing_the_images_does() -> None:
    """95% of the differences of two models that are equal in truth lie within what is called chance."""
    random, n, p = np.random.default_rng(0), 400, (0.7, 0.4)
    draws = random.binomial(n, np.array(p)[None, None], size=(4000, 2, 2)) / n
    inside = [Change.of([(float(b), float(a), n) for b, a in zip(*draw, strict=True)]).direction == 0 for draw in draws]
    assert 0.935 < np.mean(inside) < 0.965
