"""What of Hydra and OmegaConf has no documented place, in one file: tests/test_private_names.py says when it has moved.

What was typed is read by Hydra's own grammar and options before Hydra is started, so that mistakes are one line; a
sweep leaves out the runs that repeat others.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobReturn
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper
    from hydra.types import HydraContext, TaskFunction

__all__ = ["IntervalSweep", "JobReturn", "Override"]


def command_line() -> ArgumentParser:
    """Hydra's own options: ``overrides`` is what is left of what was typed, the settings."""
    return get_args_parser()


def override_reader() -> Callable[[str], Override]:
    """Make what reads one ``name=value``; it raises hydra.errors.OverrideParseException or HydraException."""
    return OverridesParser.create().parse_override


def options_there(group: str) -> list[str]:
    """Options of a config group, those of installed plugins among them; inside of `initialize_config_dir` alone."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG))


def launcher(context: "HydraContext", task: "TaskFunction", config: DictConfig) -> "Launcher":
    """Make the launcher that ``config.hydra.launcher`` names, for a sweeper of our own."""
    from hydra.core.plugins import Plugins  # whoever sweeps has it; the rest need not wait for it

    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def basic_sweeper() -> "type[Sweeper]":
    """Import the class of Hydra's own sweeper, which makes all combinations; in a plugin's module alone.

    Hydra runs the modules of all plugins once more when it looks for them, and a class from before does not work.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper


def as_written(node: DictConfig, key: str) -> Any:
    """Take a child of a config with its references as they stand: ``node[key]`` would resolve them, or raise."""
    return node._get_node(key)
