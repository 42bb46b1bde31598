"""A student and a teacher of the embedded architecture with random weights, and images to look at."""

from typing import NamedTuple

import pytest
from torch import Tensor

from robustft.bench.steps import Bench
from robustft.models.classifier import Classifier


class Scene(NamedTuple):
    student: Classifier
    teacher: Classifier
    x: Tensor
    y: Tensor


@pytest.fixture
def scene() -> Scene:
    bench = Bench("tiny", batch=6, precision="32-true", device="cpu")
    return Scene(bench.student, bench.teacher, bench.x, bench.y)
