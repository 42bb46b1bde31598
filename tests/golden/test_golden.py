"""Everything the published implementation's numbers cover, within the tolerances stated in compare.py."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.golden.compare import FIXTURE, compare, weight_average
from tests.needs import SHARED, shared

# The whole reference holds the teacher's weights and the gradients of every setting too.
WHOLE = SHARED / "golden" / "reference_small.safetensors"
has_whole = shared("golden/reference_small.safetensors")


@pytest.mark.parametrize("path", [FIXTURE, pytest.param(WHOLE, marks=has_whole)], ids=lambda path: path.stem)
def test_published_numbers(path: Path) -> None:
    rows = list(compare(path))
    assert len(rows) >= 107
    assert not [row for row in rows if not row.passed]


def test_a_wrong_number_is_noticed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    numbers = load_file(FIXTURE)
    numbers["cam.attention_relevance_normalized"] *= 1 + 1e-4
    numbers["grad.object0.3+single.head.bias"] *= 1 + 1e-3
    path = tmp_path / "wrong.safetensors"
    save_file(numbers, path)
    wrong = [row.name for row in compare(path) if not row.passed]
    assert wrong == ["relevance", "object0.3+single: gradient of head.bias"]


@has_whole
def test_weight_average() -> None:
    assert weight_average(load_file(WHOLE)).passed
