"""From the config of the data to the data: the class that `_target_` names, checked."""

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from robustft.common.errors import UserError
from robustft.data.datamodule import RobustnessData

HINT = "A module of your own has to lie beside the folder of --config-dir, or on PYTHONPATH"


def make_data(options: Mapping[str, Any], **given: Any) -> RobustnessData:
    """Make the data of a run from its config.

    Args:
        options: `_target_`, the class, and its arguments.
        given: arguments that are no settings.

    Raises:
        UserError: there is no such class, it is no `RobustnessData`, or it does not take these arguments.
    """
    target, who = options["_target_"], f"data._target_={options['_target_']}"
    try:
        made: Any = instantiate({"_target_": "hydra.utils.get_object", "path": target})
    except Exception as error:  # whatever a module of a user's own raises when it is imported
        cause = error.__cause__ or error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(f"{who}: cannot be imported ({' '.join(str(cause).split())}). {HINT}") from error
    if not (isinstance(made, type) and issubclass(made, RobustnessData)):
        raise UserError(f"{who}: expected a class that extends RobustnessData (robustft/data/datamodule.py)")
    if missing := sorted(getattr(made, "__abstractmethods__", ())):
        raise UserError(f"{who}: it lacks {', '.join(missing)}(); see robustft/data/datamodule.py")
    try:
        inspect.signature(made).bind(**{key: value for key, value in options.items() if key != "_target_"}, **given)
    except TypeError as error:
        raise UserError(f"{who}: {error}. Its __init__ takes every key of its config, and **options") from error
    return instantiate(dict(options), _partial_=True, _convert_="all")(**given)
