"""Where configs come from: ``conf/`` of this project and, with ``--config-dir DIR``, a folder of the user's own."""

import hashlib
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from robustft.common import files
from robustft.common.errors import UserError
from robustft.common.paths import cache_folder, expand

PACKAGE = Path(__file__).resolve().parents[1]
RECORD = "config_dir.txt"  # in a run's folder: where the user's own configs were

_added: list[Path] = []  # the user's folder, if there is one


def _own() -> Path:
    """conf/ lies inside of an installed package, and beside the package in a clone."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


CONF = _own()


def added() -> Path | None:
    """Name the user's own folder of configs, absolute; None where there is none."""
    return _added[0] if _added else None


def add(typed: "str | Path") -> None:
    """Take configs from a folder of the user's own too; Python finds modules beside it, in all processes of a run.

    That the user has named it is remembered: see ``recorded``.

    Raises:
        UserError: there is no such folder, or it has a config of ours under the same name, which would not be used.
    """
    folder = Path(os.path.abspath(expand(typed)))
    if not folder.is_dir():
        raise UserError(f"--config-dir={typed}: no such folder. Expected one with configs, as {CONF.name}/ has them")
    for path in sorted(folder.glob("*/*.yaml")) + sorted(folder.glob("hydra/*/*.yaml")):
        ours = CONF / path.relative_to(folder)
        if ours.is_file() and ours.read_bytes() != path.read_bytes():
            name = path.relative_to(folder)
            raise UserError(f"--config-dir={typed}: {name} has the name of one of robustft's own. Rename it")
    _added[:] = [folder]
    with suppress(OSError):
        files.write(_known(folder), f"{folder}\n")
    parent = str(folder.parent)
    if parent not in sys.path:
        sys.path.insert(1, parent)
    found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if parent not in found:
        os.environ["PYTHONPATH"] = os.pathsep.join([parent, *filter(None, found)])


def _known(folder: Path) -> Path:
    """The file in the user's cache that says that the user has named a folder."""
    return cache_folder() / "configs" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]


def groups() -> dict[str, list[str]]:
    """Config groups and their options, the user's own included."""
    found: dict[str, set[str]] = {}
    for place in (CONF, *_added):
        for folder in sorted(path for path in place.iterdir() if path.is_dir() and path.name != "hydra"):
            options = {path.stem for path in folder.glob("*.yaml")}
            if options:
                found.setdefault(folder.name, set()).update(options)
    return {name: sorted(options) for name, options in sorted(found.items())}


@cache
def several() -> frozenset[str]:
    """Name the groups that can have several options at once: those with a list for a default."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False)
    assert isinstance(config, dict)
    entries = [entry for entry in config["defaults"] if isinstance(entry, dict)]
    return frozenset(key for entry in entries for key, options in entry.items() if isinstance(options, list))


def is_new_group(name: str) -> bool:
    """Whether a group is the user's alone: it is in no list of defaults, and is chosen with a plus."""
    return not (CONF / name).is_dir() and name in groups()


def record(folder: Path) -> None:
    """Write into a run's folder where the user's own configs are."""
    if _added:
        files.write(folder / RECORD, f"{_added[0]}\n")
    else:
        (folder / RECORD).unlink(missing_ok=True)


def recorded(folder: Path) -> Path | None:
    """Read which folder of the user's own configs a run was started with; None: it had none.

    The folder of a run may come from somebody else, and what it names is code: followed is what the user has named too.

    Raises:
        UserError: it is no longer there, or was never named here.
    """
    try:
        found = Path((folder / RECORD).read_text("utf-8").strip())
    except FileNotFoundError:
        return None
    if not found.is_dir():
        raise UserError(
            f"resume={folder}: it was started with configs in {found}, which is no more."
            " Put them back, or say where they are: --config-dir DIR"
        )
    if found not in _added and not _known(found).is_file():
        raise UserError(
            f"{folder}: it was started with configs in {found}, which nobody has named here. They are code: if you"
            f" trust them, say so with --config-dir {found}"
        )
    return found
