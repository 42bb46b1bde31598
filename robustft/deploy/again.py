"""What a run was made from, made again from its settings: its data, its zero-shot model.

The settings of a run may come from somebody else. Of the code that they name, what our own configs name is run, and a
class of data where the user has said where it lies; nothing else is imported.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from robustft.cli import sources
from robustft.common.errors import UserError
from robustft.common.wording import difference
from robustft.components import instantiated, make_zeroshot
from robustft.data.datamodule import RobustnessData
from robustft.deploy.model import Model
from robustft.deploy.source import Source
from robustft.models.files import RESULTS
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
    made = make_zeroshot(model, data, seed_of(source))
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
    settings = _part(source, "data")
    if any(path != "data._target_" for path, _ in _targets(settings, "data")):
        raise UserError(f"{source.folder}: the settings of its data name code to run besides its class: not followed")
    target = settings.get("_target_")
    if target not in _ours("data") and source.own_configs() is None:
        raise UserError(
            f"{source.folder}: data._target_={target} is no code of robustft's, and the folder of configs beside which"
            " it lies has not been named here. If you trust it, name it with --config-dir DIR"
        )
    preprocess = preprocess_in(source.described)
    return instantiated(settings, preprocess=preprocess, seed=seed_of(source))


def model_settings(source: Source) -> DictConfig:
    """The settings of a run's model.

    Raises:
        UserError: nothing tells them, or they name code that is not ours, a backbone apart, which nobody makes here.
    """
    settings = _part(source, "model")
    backbone = {"backbone": None if settings.get("backbone") is None else str(settings["backbone"])}
    for path, target in _targets({**settings, **backbone}, "model"):
        if target not in _ours("model"):
            raise UserError(f"{source.folder}: {path}={target} is no code of robustft's: not followed")
    return OmegaConf.create({**settings, **backbone})


def _part(source: Source, name: str) -> dict[str, Any]:
    """The settings of a component; they are resolved, so that a reference in them is somebody else's."""
    found = source.require_config().get(name)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f"{source.folder}: {RESULTS} or config.yaml in there says nothing of {name}")
    if "${" in str(found):
        raise UserError(f"{source.folder}: the settings of its {name} refer to something beside them: not followed")
    return dict(found)


def seed_of(source: Source) -> int:
    """The seed of a run.

    Raises:
        UserError: nothing tells it.
    """
    seed = source.require_config().get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"{source.folder}: {RESULTS} or config.yaml in there has no seed")
    return seed


@cache
def _ours(group: str) -> frozenset[str]:
    """What the configs of our own name in a group."""
    nodes = [yaml.safe_load(path.read_text("utf-8")) for path in (sources.CONF / group).glob("*.yaml")]
    return frozenset(target for node in nodes for _, target in _targets(node, group))


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Everything in settings that names code, with its place."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key == "_target_":
            yield f"{path}.{key}", str(value)
        yield from _targets(value, f"{path}.{key}")
