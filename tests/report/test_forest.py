"""Differences drawn, a line each."""

from pathlib import Path

import pytest

from robustft.report import forest as module
from robustft.report.forest import forest
from robustft.report.stats import Difference

ONE = Difference(0.01, 0.002, 0.018, 0.02, 5)


def test_points_and_intervals_are_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    alone = Difference(-0.02, None, None, None, 1)
    forest(tmp_path / "f.png", {"a": {"x": ONE, "y": alone}, "b": {"y": ONE}}, what="points", title="t", noise=0.005)
    ax = drawn[0].axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y"]
    first, second = ax.containers
    assert first.lines[0].get_xdata().tolist() == pytest.approx([1.0, -2.0])
    (x, y) = (line[:, 0].tolist() for line in first.lines[2][0].get_segments())
    assert x == pytest.approx([0.2, 1.8]) and y == pytest.approx([-2.0, -2.0])
    assert first.lines[0].get_ydata().tolist() == pytest.approx([-0.13, 0.87])
    assert second.lines[0].get_ydata().tolist() == pytest.approx([1.13])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_a_picture_is_left_and_too_many_series_are_refused(tmp_path: Path) -> None:
    forest(tmp_path / "f.png", {"a": {"x": ONE}}, what="points", title="t")
    assert (tmp_path / "f.png").stat().st_size > 5_000
    for number in (0, len(module.COLOURS) + 1):
        with pytest.raises(ValueError, match=f"{number} series"):
            forest(tmp_path / "g.png", {str(k): {"x": ONE} for k in range(number)}, what="", title="")
