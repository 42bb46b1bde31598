"""What a run's folder tells of its run: its settings, whether it is finished, and whether one can go on from there."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from robustft.cli import identity
from robustft.cli.hydra_private import Override
from robustft.common import configs
from robustft.common.errors import FolderTaken, UserError
from robustft.common.files import write
from robustft.common.wording import on_one_line

HYDRAS = ("hydra.run.dir", "hydra.sweep.", "hydra.launcher.n_jobs", "hydra.sweeper.n_jobs")  # settings that run nothing
MOST_LEVELS = 50  # of settings in settings


def is_finished(folder: Path) -> bool:
    """Whether a complete evaluation lies in a run folder."""
    try:
        return json.loads((folder / "results.json").read_text())["schema"] in (1, 2)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_interrupted(folder: Path) -> bool:
    """Whether a run folder has a state to go on from, and no results yet."""
    return (folder / "last.ckpt").exists() and not (folder / "results.json").exists()


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The config a run folder was made with; None where there is none to read."""
    try:
        values = OmegaConf.to_container(_yaml(folder / "config.yaml"))
    except Exception:  # noqa: BLE001 -- half a file, another tool's file: either way not one of ours
        return None
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else None


def saved_overrides(folder: Path) -> list[str]:
    """What was typed to start the run in a folder.

    Raises:
        UserError: the file is there and cannot be read.
    """
    path = folder / "overrides.yaml"
    if not path.exists():
        return []
    try:
        lines = OmegaConf.to_container(_yaml(path))
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError("no list of settings")
    except Exception as error:  # as above
        why = on_one_line(error)
        raise UserError(f"{path} cannot be read ({why}). Expected a list of what was typed") from error
    return [str(line) for line in lines]


def _yaml(path: Path) -> Any:
    """A config as we write it: without aliases, which can make a few lines endless, and with few levels.

    Raises:
        ValueError, YAMLError, OSError, …: it is something else.
    """
    text = path.read_text("utf-8")
    level = 0
    for event in yaml.parse(text, yaml.SafeLoader):  # as far as it is read, no more of it is looked at
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or level > MOST_LEVELS:
            raise ValueError("it has aliases" if level <= MOST_LEVELS else "it is nested too deep")
    return OmegaConf.create(text) if text.strip() else OmegaConf.create()


def refuse_code(folder: Path, overrides: Iterable[Override]) -> None:
    """Refuse to follow a run's folder, which may be somebody else's, where it names code or sets Hydra up.

    Args:
        overrides: those of its settings that were not typed again.

    Raises:
        UserError: names the setting.
    """
    for override in overrides:
        key, value = override.key_or_group, override.value()
        ours = not key.startswith("hydra.") or key.startswith(HYDRAS)
        if not ours or key.rpartition(".")[2] == "_target_" or _names_code(value):
            raise UserError(
                f"resume={folder}: its overrides.yaml holds {override.input_line}, which may run code. If you trust it,"
                " type it again"
            )


def _names_code(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return (isinstance(value, dict) and any(str(key) == "_target_" for key in value)) or any(map(_names_code, inner))


def save(folder: Path, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Writes config.yaml (all settings, resolved) and overrides.yaml (what was typed)."""
    for filename, content in (("config.yaml", configs.plain(cfg)), ("overrides.yaml", list(overrides))):
        write(folder / filename, OmegaConf.to_yaml(OmegaConf.create(content)))


def record(folder: Path, cfg: DictConfig, setting: str) -> None:
    """Writes what a setting came to, for those who go on with the run: ``setting`` stands as if it had been typed."""
    key = setting.partition("=")[0]
    save(folder, cfg, [*(line for line in saved_overrides(folder) if not line.startswith(f"{key}=")), setting])


def newest_interrupted(cfg: DictConfig, folders: Sequence[Path]) -> Path | None:
    """Of some run folders, the newest that was interrupted and has this very config."""
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        saved = saved_config(folder) if is_interrupted(folder) else None
        if saved is not None and not identity.differences(cfg, saved):
            return folder
    return None


def check_resumable(folder: Path) -> None:
    """Refuses a folder with nothing to go on from.

    Raises:
        UserError: it is no folder, is finished, or has no training state or config.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"resume={folder}: that is a file. Expected auto, or the folder of an interrupted run")
    if not folder.is_dir():
        raise UserError(f"resume={folder}: no such folder. Expected auto, or the folder of an interrupted run")
    if is_finished(folder):
        raise UserError(f"resume={folder}: that run is finished. Leave out resume= to start another")
    saved = saved_config(folder)
    if not (folder / "last.ckpt").exists() or saved is None:
        raise UserError(f"resume={folder}: no last.ckpt with its config.yaml in there, so nothing to go on from")
    if "schedule" not in saved:
        raise UserError(
            f"resume={folder}: that run was started by an earlier version of robustft, whose runs this one cannot go on"
            " with. Start it again, or finish it with that version"
        )
    refuse_damaged(folder)


def refuse_damaged(folder: Path) -> None:
    """Refuses a last.ckpt that was cut off, as a copy leaves it: the list of its parts stands at its end.

    Raises:
        UserError: says what to do.
    """
    path = folder / "last.ckpt"
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} cannot be read: it is damaged or cut off. Copy it again, or start the run again without resume="
            " (in a sweep: delete that file)"
        )


def refuse_other_config(cfg: DictConfig, folder: Path, what: str, advice: str) -> None:
    """Refuses to go on in a folder whose run was another one.

    Raises:
        FolderTaken: names up to three settings that differ.
    """
    found = identity.differences(cfg, saved_config(folder) or {})
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise FolderTaken(f"{what} has other settings: {', '.join(found[:3])}{more}. {advice}")
