"""These run by themselves wherever there is a CUDA device, and are skipped elsewhere."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")
            item.add_marker(pytest.mark.timeout(1800))
            if not torch.cuda.is_available() and "rehearsal" not in item.keywords:
                item.add_marker(absent)
