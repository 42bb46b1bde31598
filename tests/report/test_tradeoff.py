"""OOD at matched ID over whole curves, on curves with known answers."""

import pytest

from robustft.report.tradeoff import markdown, match

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
