"""Numbers that the public implementations of neighbouring methods give, in float32 and float64.

Keys are ``<method>/<what>``; ``<key>.f64`` is the same computed in float64 from the inputs as they are stored.

    python -m tests.golden.neighbours experiments/neighbours/golden.md     # the largest difference of each method
"""

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}  # relative to the largest entry of a tensor
DTYPES = list(TOLERANCE)


class Seen(NamedTuple):
    """A comparison: the largest difference, relative to the number's largest entry."""

    method: str
    name: str
    dtype: torch.dtype
    difference: float


SEEN: list[Seen] = []


@lru_cache
def _numbers() -> dict[str, Any]:
    return {
        **load_file(FOLDER / "neighbours.safetensors"),
        **json.loads((FOLDER / "neighbours.json").read_text("utf-8")),
    }


class Golden:
    """The numbers of one method: inputs and results in ``dtype``.

    Example:
        >>> Golden("spd", torch.float64)["lr"]
        0.05
    """

    def __init__(self, method: str, dtype: torch.dtype) -> None:
        self.method, self.dtype = method, dtype

    def __getitem__(self, name: str) -> Any:
        """A result in the precision asked for, where there are two; an input in that precision."""
        numbers, key = _numbers(), f"{self.method}/{name}"
        double = f"{key}.f64"
        value = numbers[double if self.dtype == torch.float64 and double in numbers else key]
        is_real = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if is_real else value

    def close(self, ours: Any, name: str, tolerance: float | None = None) -> None:
        """Assert that ours is the number of that name, relative to its largest entry."""
        theirs = torch.as_tensor(self[name], dtype=self.dtype)
        found = torch.as_tensor(ours, dtype=self.dtype).detach()
        assert found.shape == theirs.shape, f"{name}: {tuple(found.shape)}, expected {tuple(theirs.shape)}"
        largest = float(theirs.abs().max())
        limit = (TOLERANCE[self.dtype] if tolerance is None else tolerance) * largest
        difference = float((found - theirs).abs().max())
        SEEN.append(Seen(self.method, name, self.dtype, difference / largest if largest else difference))
        assert difference <= limit, f"{self.method}/{name}: differs by {difference:.3g}, {limit:.3g} is allowed"


def table() -> str:
    """A row for each method: how many of its numbers were compared, and the largest difference in either precision."""
    rows = ["| implementation | numbers | float64 | float32 | the largest of these |", "|---|---:|---:|---:|---|"]
    for method in sorted({one.method for one in SEEN}):
        own = [one for one in SEEN if one.method == method]
        cells = []
        for dtype in DTYPES:
            of_dtype = [one.difference for one in own if one.dtype == dtype]
            cells.append(f"{max(of_dtype):.1e}" if of_dtype else "–")
        worst = max(own, key=lambda one: one.difference / TOLERANCE[one.dtype])
        rows.append(f"| {method} | {len({one.name for one in own})} | {' | '.join(cells)} | {worst.name} |")
    return "\n".join(rows) + "\n"


def main(file: Path) -> int:
    """Run the tests that compare with these numbers, and leave the table of what they saw."""
    import pytest

    from tests.golden import neighbours  # the tests', which is not this one when it is run as a script

    folder = FOLDER.parent
    paths = sorted({str(one) for one in folder.rglob("test_*.py") if "Golden(" in one.read_text("utf-8")})
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not work", *paths])
    if status == 0:
        file.write_text(neighbours.table(), encoding="utf-8")
        print(neighbours.table())
    return int(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
