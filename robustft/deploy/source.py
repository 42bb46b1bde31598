"""What a run left: the model's file, and beside it the settings and the results. Read without torch."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustft.cli import resuming, sources
from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.common.wording import first_line
from robustft.evaluation.results import read_results
from robustft.models.files import BEST, FORMAT, RESULTS, model_file

CONFIG_DIR = "where configs of your own are that the run was started with, its code beside them, if it has moved"


@dataclass(frozen=True)
class Source:
    """A model and where it comes from.

    Attributes:
        file: the model's, ``model.safetensors``; of an interrupted run the best so far.
    """

    file: Path

    @property
    def folder(self) -> Path:
        """The run's, where the file lies in one."""
        return self.file.parent

    @cached_property
    def results(self) -> dict[str, Any] | None:
        """What results.json holds; None of a run that has not finished, and of a model that lies alone.

        Raises:
            UserError: it is damaged.
        """
        path = self.folder / RESULTS
        return read_results(path) if path.is_file() else None

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """The settings of the run; None where nothing tells them."""
        if self.results is not None:
            return self.results["config"]
        return resuming.saved_config(self.folder)

    def require_config(self) -> Mapping[str, Any]:
        """Give the settings of the run.

        Raises:
            UserError: nothing tells them.
        """
        if self.config is None:
            raise UserError(f"{self.folder}: no {RESULTS} or config.yaml in there says how the model came about")
        return self.config

    @cached_property
    def described(self) -> dict[str, str]:
        """What the model's file says of itself, see ``robustft.models.weights.describe``.

        Raises:
            UserError: it is no model of this project, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, "numpy") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.file} is not a readable model ({first_line(error)})") from error
        if metadata.get("format") != FORMAT and self.file.name == BEST:
            raise UserError(
                f"{self.file} holds weights without what rebuilds their model: an interrupted linear probe, or a run of"
                f" an earlier version. Go on with that run first: resume={self.folder}"
            )
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{self.file} is not a model left by a run. Weights of others are read by method=evaluate"
                " checkpoint=FILE, which leaves one that is"
            )
        return metadata

    @property
    def class_names(self) -> list[str]:
        """Of the model, in label order."""
        return list(self._told("classes", list))

    @property
    def architecture(self) -> str:
        """The name of the image tower's architecture."""
        return self.described["architecture"]

    @property
    def tower(self) -> dict[str, Any]:
        """The config of the image tower, see ``robustft.models.classifier.Architecture``."""
        return self._told("config", dict)

    def _told(self, name: str, kind: type) -> Any:
        try:
            told = json.loads(self.described[name])
            if not isinstance(told, kind):
                raise ValueError(name)
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{self.file} is not a model as a run leaves it: it does not say its {name}") from error
        return told

    def temperature(self, zeroshot: bool = False) -> float | None:
        """What logits are divided by so that probabilities are calibrated, fitted on the hold-out; None: it was not.

        Args:
            zeroshot: that of the zero-shot model.
        """
        fitted = (self.results or {}).get("calibration") or {}
        return fitted.get("zeroshot_temperature" if zeroshot else "temperature")

    def own_configs(self) -> Path | None:
        """The folder of the user's own configs beside which Python finds the modules that the run was started with.

        Returns:
            The one that was named now, else that of the run; None where there is none, or it was never named here.
        """
        if (named := sources.added()) is not None:
            return named
        try:
            own = sources.recorded(self.folder)
        except UserError:
            return None
        if own is not None and str(own.parent) not in sys.path:
            sys.path.insert(1, str(own.parent))
        return own


def find(typed: str | Path, config_dir: str | None = None) -> Source:
    """The model in a run's folder, or the file itself.

    Args:
        config_dir: the folder of configs beside which code of the user's own lies that the run was started with.

    Raises:
        UserError: there is none; says why not.
    """
    if config_dir is not None:
        sources.add(config_dir)
    given = expand(typed)
    file = model_file(given)
    if file.is_file():
        return Source(file)
    if not given.exists():
        raise UserError(f"{given}: no such file or folder. Expected the folder of a run, or its model.safetensors")
    left = Source(given / "model.safetensors")
    if left.results is not None:
        raise UserError(
            f"{given}: that run left no model to use. method={left.results['method']} with"
            " trainer.enable_checkpointing=true leaves one"
        )
    if left.config is not None:
        raise UserError(f"{given}: that run has left no model yet. Go on with it: resume={given}")
    raise UserError(f"{given}: no model.safetensors in there. Expected the folder of a run, or its model.safetensors")
