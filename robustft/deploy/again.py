"""What a run was made from, made again from its settings: its data, its zero-shot model.

The settings of a run may come from somebody else. Of the code that they name, what is ours is run, and a class of data,
which is known to be one before it is made.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from robustft.common.errors import UserError
from robustft.common.wording import difference
from robustft.components import instantiated, make_zeroshot
from robustft.data.datamodule import RobustnessData
from robustft.deploy.model import Model
from robustft.deploy.source import Source
from robustft.models.weights import preprocess_in


def zeroshot_of(source: Source, names: Sequence[str]) -> Model:
    """The model that a run's training started from and is compared with.

    Args:
        names: of the classes of the model that the run left: its data must still have them.

    Raises:
        UserError: nothing tells the run's settings, its data is gone or has changed, or there is no text tower.
    """
    model = model_settings(source)
    if model.get("backbone"):
        raise UserError(f"--zero-shot: {model.architecture} has no text tower, so there is no zero-shot model")
    data = data_of(source)
    refuse_other_classes(source, data, names, "--zero-shot: ")
    made = make_zeroshot(model, data, source.require_config()["seed"])
    return Model(made, names, source.temperature(zeroshot=True)).eval()


def refuse_other_classes(source: Source, data: RobustnessData, names: Sequence[str], doing: str = "") -> None:
    """Refuse data that have changed since the run.

    Args:
        names: of the classes of the model.
        doing: what needs the data, before the message.

    Raises:
        UserError: its classes are others; says which.
    """
    if list(data.class_names) != list(names):
        raise UserError(
            f"{doing}the data of {source.folder} has other classes now than the {len(names):,} that the model was"
            f" trained for: {difference(list(data.class_names), list(names))}"
        )


def data_of(source: Source) -> RobustnessData:
    """The data of a run.

    Raises:
        UserError: nothing tells it, its class cannot be imported, or the settings name code besides.
    """
    settings = dict(source.require_config()["data"])
    if any(path != "data._target_" for path, _ in _targets(settings, "data")):
        raise UserError(f"{source.folder}: the settings of its data name code to run besides its class: not followed")
    source.find_modules()
    preprocess = preprocess_in(source.described)
    return instantiated(settings, preprocess=preprocess, seed=source.require_config()["seed"])


def model_settings(source: Source) -> DictConfig:
    """The settings of a run's model.

    Raises:
        UserError: nothing tells them, or they name code that is not ours, a backbone apart, which nobody makes here.
    """
    settings = dict(source.require_config()["model"])
    backbone = {"backbone": None if settings.get("backbone") is None else str(settings["backbone"])}
    for path, target in _targets({**settings, **backbone}, "model"):
        if not str(getattr(get_object(target), "__module__", "")).startswith("robustft."):
            raise UserError(f"{source.folder}: {path}={target} is no code of robustft's: not followed")
    return OmegaConf.create({**settings, **backbone})


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Everything in settings that names code, with its place."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key == "_target_":
            yield f"{path}.{key}", str(value)
        yield from _targets(value, f"{path}.{key}")
