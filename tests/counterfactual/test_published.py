"""The published numbers hold with activation checkpointing too."""

import pytest

from robustft.models.classifier import Classifier
from tests.golden import compare


def test_with_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    load = compare.load_model

    def load_checkpointing(*arguments: object) -> Classifier:
        model = load(*arguments)
        model.visual.set_grad_checkpointing(True)
        return model

    monkeypatch.setattr(compare, "load_model", load_checkpointing)
    rows = list(compare.compare())
    assert len(rows) >= 107
    assert not [row for row in rows if not row.passed]
