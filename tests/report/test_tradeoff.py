"""OOD at matched ID over whole curves, on curves with known answers."""

import pytest

from robustft.report.tradeoff import cells, contrast, markdown, match

FLAT = [(0.60, 0.50), (0.80, 0.50)]


def test_a_curve_that_lies_higher_by_two_points_is_two_points_better() -> None:
    higher = [(0.50, 0.52), (0.70, 0.52), (0.90, 0.52)]
    matched = match({"a": {1: FLAT, 2: FLAT}, "b": {1: higher, 2: higher}})
    assert matched.shared == {1: (0.60, 0.80), 2: (0.60, 0.80)}
    difference = matched.difference("b", "a")
    assert difference is not None
    assert difference.mean == pytest.approx(0.02)
    assert difference.n == 2


def test_points_on_one_line_do_not_differ_wherever_they_fall_on_it() -> None:
    def line(*places: float) -> list[tuple[float, float]]:
        return [(x, 1 - x) for x in places]

    matched = match({"few": {1: line(0.6, 0.8)}, "many": {1: line(0.5, 0.65, 0.7, 0.9)}})
    difference = matched.difference("many", "few")
    assert difference is not None and difference.mean == pytest.approx(0)


def test_mean_over_the_shared_range_equals_the_integral_of_straight_lines() -> None:
    rising = [(0.6, 0.4), (0.8, 0.6)]
    matched = match({"rising": {1: rising}, "flat": {1: FLAT}})
    assert matched.ood["rising"][1] == pytest.approx(0.5)


def test_seeds_without_a_shared_range_are_left_out() -> None:
    away = [(0.1, 0.9), (0.2, 0.8)]
    matched = match({"a": {1: FLAT, 2: FLAT}, "b": {1: FLAT, 2: away, 3: FLAT}})
    assert list(matched.shared) == [1]
    assert "| b | 1 |" in markdown(matched, "a")


def test_a_contrast_is_between_means_and_over_the_seeds_of_all() -> None:
    def at(ood: float) -> list[tuple[float, float]]:
        return [(0.60, ood), (0.80, ood)]

    ood = {"a": (0.50, 0.52), "b": (0.54, 0.52), "c": (0.50, 0.51)}
    curves = {name: {seed: at(value) for seed, value in enumerate(values)} for name, values in ood.items()}
    found = contrast(curves, [("a", "c"), ("b", "c")])  # 0.52 - 0.50, 0.52 - 0.51
    assert found is not None and found.low is not None and found.n == 2
    assert found.mean == pytest.approx(0.015)
    assert found.low == pytest.approx(0.015 - 12.7062 * 0.005, abs=1e-5)  # t for one degree of freedom
    assert cells(found) == ("+1.5 [−4.9, +7.9]", "0.205")
    assert cells(None) == ("–", "–")
