"""Where models lie: what a user may give for a model's file, and the file that is meant."""

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError
from robustft.common.paths import expand

FORMAT = "robustft-classifier"  # what a file of a run says that it is
MODEL = "model.safetensors"  # what a run leaves of its model
RESULTS = "results.json"
BEST = "best.safetensors"  # what it has of it before its end
# What folders of CLIP weights are made of, open_clip's and Hugging Face's, in the order of preference.
_WEIGHTS = (
    MODEL,
    "open_clip_model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


def model_file(path: str | Path) -> Path:
    """Return the file that is meant by a model's file or a run's folder; ``~`` is the home folder.

    Of a run that has not finished it is the best model so far.

    Raises:
        UserError: the folder is that of a run that is more than one model.
    """
    found = _inside(expand(path), (MODEL, BEST))
    refuse_several(found)
    return found


def model_files(given: str | Sequence[str]) -> list[Path]:
    """Return the files meant by files, runs' folders and globs of both: in their order, none twice.

    Those of a glob come by name; folders in it that hold no model are passed over.

    Raises:
        UserError: one of them is not there, or is a folder without a model.
    """
    found: dict[Path, None] = {}
    for item in [given] if isinstance(given, str) else list(given):
        pattern = str(expand(item))
        is_named = Path(pattern).exists()
        matched = [pattern] if is_named else sorted(glob.glob(pattern, recursive=True))
        candidates = [model_file(pattern)] if is_named else [_inside(Path(one), (MODEL, BEST)) for one in matched]
        files = [file for file in candidates if file.is_file()]
        if not files:
            raise UserError(f"checkpoints={item}: no such file. Expected model.safetensors of runs, or their folders")
        found |= dict.fromkeys(files)
    return list(found)


def why_no_model(record: Mapping[str, Any]) -> str | None:
    """Say, of a run's results, why it cannot have left a model; None: it could."""
    protocol = record.get("protocol") or {}
    count = protocol.get("models_at_inference") or 1
    if count == 1:
        return None
    what = "a model for each cluster of a set" if protocol.get("transductive") else "more than one model at inference"
    return f"method={record['method']} is {what}; predictions.csv.gz has what it says of the evaluation sets"


def refuse_several(path: Path) -> None:
    """Refuse a run that is more than one model, where the model of a run is asked for.

    Raises:
        UserError: says so.
    """
    try:
        record = json.loads((path / RESULTS).read_text("utf-8"))
        why = why_no_model(record)
    except (OSError, ValueError, KeyError, AttributeError):
        return
    if why is not None:
        raise UserError(f"{path} has no model file: {why}")


def weights_file(path: str | Path) -> Path:
    """Return the file that is meant by CLIP weights or a folder of them: a run's, or one as of the Hugging Face hub."""
    return _inside(expand(path), (*_WEIGHTS, BEST))


def _inside(path: Path, names: Sequence[str]) -> Path:
    return next((path / name for name in names if (path / name).is_file()), path)
