"""Scores that are known already: of models that do not change, one small file per evaluation set."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from robustft.common.cache import optional
from robustft.common.files import atomic
from robustft.data.sets import EvaluationSet
from robustft.evaluation.results import Score


class ScoreCache:
    """Scores of one model under given settings, one small file per evaluation set.

    A set is known by what ``EvaluationSet.fingerprint`` says of its images, labels and classes.
    """

    def __init__(self, folder: Path, model: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.key = f"{model}{json.dumps(dict(settings), sort_keys=True, default=str)}torch{torch.__version__}"

    def get(self, evaluation_set: EvaluationSet) -> Score | None:
        try:
            found = json.loads(self._path(evaluation_set).read_text())
            return Score(found.pop("top1"), found.pop("n"), found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def put(self, evaluation_set: EvaluationSet, score: Score) -> None:
        with optional(self.folder), atomic(self._path(evaluation_set)) as partial:
            partial.write_text(json.dumps(score.as_dict()))

    def get_temperature(self) -> float | None:
        """That of the hold-out, under the settings that name it."""
        try:
            return float(json.loads((self.folder / f"{self._digest('temperature')}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def put_temperature(self, temperature: float) -> None:
        with optional(self.folder), atomic(self.folder / f"{self._digest('temperature')}.json") as partial:
            partial.write_text(json.dumps(temperature))

    def _path(self, evaluation_set: EvaluationSet) -> Path:
        return self.folder / f"{self._digest(evaluation_set.fingerprint)}.json"

    def _digest(self, what: str) -> str:
        return hashlib.sha256(f"{self.key}{what}".encode()).hexdigest()[:32]
