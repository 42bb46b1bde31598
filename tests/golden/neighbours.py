"""Numbers that the public implementations of neighbouring methods give, in float32 and float64.

Keys are ``<method>/<what>``; ``<key>.f64`` is the same computed in float64 from the inputs as they are stored.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}  # relative to the largest entry of a tensor
DTYPES = list(TOLERANCE)


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
        limit = (TOLERANCE[self.dtype] if tolerance is None else tolerance) * float(theirs.abs().max())
        difference = float((found - theirs).abs().max())
        assert difference <= limit, f"{self.method}/{name}: differs by {difference:.3g}, {limit:.3g} is allowed"
