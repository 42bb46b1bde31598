"""What is computed once and kept in the user's cache: scores of models that do not change, features, probes."""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustft.data.sets import EvaluationSet
from robustft.evaluation.results import Score
from robustft.files import atomic, save_tensors

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``$ROBUSTFT_CACHE``, else ``robustft`` in the user's cache folder."""
    own = os.environ.get("ROBUSTFT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "robustft"


def fingerprint(model: nn.Module) -> str:
    """A digest of a model: its modules (activations and heads are in no weight) and its weights."""
    digest = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest(*parts: Any) -> str:
    """A name for what was computed from ``parts`` (numbers, text, lists, dictionaries) with this torch."""
    text = json.dumps([*parts, torch.__version__], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_first_process() -> bool:
    """Whether this process is the one of a run that writes files."""
    return not getattr(rank_zero_only, "rank", 0)


def remembered(path: Path, make: Callable[[], dict[str, Tensor]], together: bool = False) -> dict[str, Tensor]:
    """The tensors kept in ``path``; made and kept, atomically, where they are not there or not readable.

    Args:
        together: the processes of a run make them together, each its share, and the first one keeps them. Otherwise
            one process makes them while others, of this run and of other runs, wait for it.
    """
    with nullcontext() if together else locked(path):
        if path.is_file():
            with suppress(SafetensorError, OSError):
                return load_file(path)
        tensors = make()
        if not together or is_first_process():
            save_tensors(path, tensors)
    return tensors


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Nobody else, on this machine or another that sees the file, is in here for the same ``path``.

    Raises:
        BlockingIOError: somebody is, and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            log.info("waiting for another process that computes the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ScoreCache:
    """Scores of one model under given settings, one small file per evaluation set.

    A set is known by what ``EvaluationSet.fingerprint`` says of its images, labels and classes.
    """

    def __init__(self, folder: Path, model: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.key = f"{model}{json.dumps(dict(settings), sort_keys=True, default=str)}torch{torch.__version__}"

    def get(self, evaluation_set: EvaluationSet) -> Score | None:
        try:
            return Score(**json.loads(self._path(evaluation_set).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def put(self, evaluation_set: EvaluationSet, score: Score) -> None:
        with atomic(self._path(evaluation_set)) as partial:
            partial.write_text(json.dumps(score.as_dict()))

    def _path(self, evaluation_set: EvaluationSet) -> Path:
        digest = hashlib.sha256(f"{self.key}{evaluation_set.fingerprint}".encode()).hexdigest()[:32]
        return self.folder / f"{digest}.json"
