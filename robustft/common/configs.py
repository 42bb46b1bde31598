"""A composed config as plain Python values, without what its components say of themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Set for each run, see `run_in` in robustft/cli/main.py.
RUN_KEYS = ("run_dir", "run_name")
ACCUMULATE = "trainer.accumulate_grad_batches"


def device_count(devices: Any) -> int | None:
    """How many devices ``trainer.devices`` asks for: 2, "2" or [0, 1]; None: as many as there are (auto, -1).

    Example:
        >>> device_count("2"), device_count("0,"), device_count("auto")
        (2, 1, None)
    """
    if isinstance(devices, str) and "," in devices:
        return len([index for index in devices.split(",") if index.strip()])
    if isinstance(devices, str) and devices.isdigit() or isinstance(devices, int):
        return int(devices) if int(devices) > 0 else None
    return len(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else None


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain, resolved Python values, as results.json and config.yaml keep it."""
    return {key: value for key, value in container(cfg, resolve=True).items() if key not in RUN_KEYS}


def container(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """A config as nested dictionaries; unless resolved, references stay as they are written."""
    values = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(values, dict)
    return without_takes({str(key): value for key, value in values.items()})


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; lists and empty dictionaries are leaves."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without_takes(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what its components say of themselves: those are no settings."""
    return {
        str(key): without_takes(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key != "takes"
    }
