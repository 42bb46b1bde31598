"""Whose a run folder is: free, a run's that must not be lost, or a living process's.

A run holds its folder while it works there (`held`). What lies in a folder is replaced only where the user says so
(overwrite=true), and then as late as can be: `run_in` (robustft/cli/main.py) puts the new run's settings aside, and
`start_over` exchanges old for new when nothing but the work itself can fail.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import takewhile
from pathlib import Path

from omegaconf import DictConfig

from robustft.cli import identity, naming, resuming, sources
from robustft.common import configs, entry, files, locks, paths
from robustft.common.errors import FolderTaken, UserError
from robustft.common.files import ASIDE
from robustft.models.files import model_file, model_files, weights_file

RESULTS = ("results.json", "model.safetensors", "predictions.csv.gz", "gallery")
STATE = ("last.ckpt", "best.safetensors")
SETTINGS = ("config.yaml", "overrides.yaml", sources.RECORD)
WANDB_ID = "wandb_id.txt"
LOGS = ("metrics.csv", "disagreement.csv", WANDB_ID, "error.txt", "run.log", *SETTINGS)
NOTES = "ROBUSTFT_NOTES"  # names a folder for what runs of a sweep have to say that may not write into their own
MADE: set[Path] = set()  # folders that this process makes for a run, until the run has done something


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is this process's until the end, and known as such to others, on other machines too.

    Raises:
        FolderTaken: another living process works there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.owned(folder / ".run"))
        except BlockingIOError as error:
            raise FolderTaken(in_use(folder, str(error))) from None
        except OSError as error:
            number = files.disk_error(error)
            if number is None:
                raise
            raise files.WriteError(f"cannot write into {folder}: {files.describe(number, folder.parent)}") from error
        shutil.rmtree(folder / ASIDE, ignore_errors=True)  # of a process that was killed
        try:
            yield
        finally:
            shutil.rmtree(folder / ASIDE, ignore_errors=True)


def in_use(folder: Path, owner: str) -> str:
    return f"{paths.readable(folder)} is being worked on by {owner}. Wait for it or stop it, or choose another folder"


def refuse_in_use(folder: Path) -> None:
    """Refuses a folder that a living process works in.

    Raises:
        FolderTaken: names the process.
    """
    if (owner := locks.owner(folder / ".run")) is not None:
        raise FolderTaken(in_use(folder, owner))


def refuse_taken(cfg: DictConfig, folder: Path) -> None:
    """Refuses a folder for a new single run where work of another would be lost.

    What a failed run leaves (its settings, log and error) is no such work, nor is what this very run has left that was
    killed before there was a state to go on from. Files of something else are.

    Raises:
        FolderTaken: says what lies there and which ways there are.
    """
    found = what_lies_in(folder)
    if not found or cfg.overwrite or _is_begun(cfg, folder):
        return
    if (folder / "results.json").exists():
        what, ways = f"a finished run{_known(folder)}", "choose another folder, or replace that run with overwrite=true"
    elif resuming.is_interrupted(folder):
        what = f"an interrupted run{_known(folder)}"
        ways = f"go on with it (resume={folder}), choose another folder, or replace that run with overwrite=true"
    else:
        what, ways = ", ".join(found), "choose another folder, or replace what is there with overwrite=true"
    raise FolderTaken(f"hydra.run.dir={folder} holds {what}: {ways}")


def _is_begun(cfg: DictConfig, folder: Path) -> bool:
    """Whether a run with this very config has begun in a folder, and left neither results nor a state."""
    if any((folder / name).exists() for name in ("results.json", "last.ckpt")):
        return False
    saved = resuming.saved_config(folder)
    return saved is not None and not identity.differences(configs.plain(cfg), saved)


def newest_resumable(cfg: DictConfig, folders: Sequence[Path]) -> Path | None:
    """Of some run folders, the newest that was interrupted, has this very config, and is nobody's now.

    Raises:
        FolderTaken: there is only one that a living process works in.
    """
    owners = {folder: locks.owner(folder / ".run") for folder in folders}
    found = resuming.newest_interrupted(cfg, [folder for folder, owner in owners.items() if owner is None])
    for folder, owner in owners.items() if found is None else ():
        saved = resuming.saved_config(folder)
        if owner is not None and saved is not None and not identity.differences(configs.plain(cfg), saved):
            raise FolderTaken(in_use(folder, owner))
    return found


def what_lies_in(folder: Path) -> list[str]:
    """Names of what a new run would replace and that is worth keeping."""
    names = (*RESULTS, *STATE) if _is_ours(folder) else (*RESULTS, *STATE, *LOGS)
    return [name for name in names if (folder / name).exists()]


def refuse_own_models(cfg: DictConfig, folder: Path) -> None:
    """Refuses to replace the very models that the run is to read.

    Raises:
        FolderTaken: names the setting.
    """
    for name, path in _models(cfg):
        place = path.resolve()
        if place.parent == folder.resolve() and place.name in (*RESULTS, *STATE):
            raise FolderTaken(
                f"{name}={path} lies in {folder}, which overwrite=true would clear before it is read. "
                "Choose another folder for the new run"
            )


def refuse_other_run(cfg: DictConfig, folder: Path) -> None:
    """Refuses a folder for a run of a sweep where a run with other settings has left what is worth keeping.

    Raises:
        FolderTaken: names the first settings that differ.
    """
    if not any((folder / name).exists() for name in (*RESULTS, *STATE)):
        return
    state = "finished" if resuming.is_finished(folder) else "unfinished"
    advice = "Name another sweep with sweep=..., or delete the folder"
    resuming.refuse_other_config(cfg, folder, f"the {state} run in {folder}", advice)


def begin(folder: Path, cfg: DictConfig, typed: Sequence[str]) -> None:
    """Clears away what a failed run has left and writes the settings of this one, or puts them aside; see ``ASIDE``."""
    typed = [line for line in typed if not line.startswith(("resume=", "sweep=", "overwrite="))]
    if not cfg.resume and cfg.overwrite and what_lies_in(folder):
        resuming.save(folder / ASIDE, cfg, typed)
        sources.record(folder / ASIDE)
        return
    if not cfg.resume and cfg.sweep is None:  # a run of a sweep that is started again keeps its W&B run
        _forget_wandb(folder)
    resuming.save(folder, cfg, typed)
    sources.record(folder)
    for name in (*RESULTS[:1], "error.txt") if cfg.resume else (*RESULTS[:2], *STATE, *LOGS[:2], "error.txt"):
        (folder / name).unlink(missing_ok=True)
    files.remove_partial(folder)


def can_go_on(folder: Path) -> bool:
    """Whether the run that works in ``folder`` has left a state; what it was to replace is not its own."""
    return resuming.is_interrupted(folder) and not (folder / ASIDE).is_dir()


def start_over(folder: Path) -> None:
    """Takes away the run that lies in ``folder`` and puts the new one's settings in place; see ``ASIDE``.

    Without settings that were put aside there is nothing to do.
    """
    aside = folder / ASIDE
    if not aside.is_dir():
        return
    _forget_wandb(folder)
    for name in (*RESULTS, *STATE, *LOGS):
        path = folder / name
        if name == "run.log":  # is open: this run's lines follow
            continue
        if path.is_dir():
            for picture in path.glob("*.png"):
                picture.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
    for path in sorted(aside.iterdir()):
        os.replace(path, folder / path.name)
    aside.rmdir()


def keep() -> None:
    """Say that the run does something from here on: its folder stays, whatever comes."""
    MADE.clear()


def leave_nothing(folder: Path) -> bool:
    """Takes a run's folder away again, with those above it that this process has made, if the run has done nothing.

    Returns:
        Whether it is gone.
    """
    early = {*SETTINGS, "run.log", "error.txt", WANDB_ID}
    others = [path for path in folder.glob("*") if path.name not in early and not path.name.startswith(".run.")]
    if folder.absolute() not in MADE or others:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other runs have come in there
        for parent in takewhile(MADE.__contains__, folder.absolute().parents):
            parent.rmdir()
    return True


def _forget_wandb(folder: Path) -> None:
    """Takes away what W&B keeps of the run that lay in ``folder``; of the new one, which has another id, nothing."""
    try:
        number = (folder / WANDB_ID).read_text("utf-8").strip()
    except (OSError, ValueError):
        return
    if re.fullmatch(r"\w+", number):
        for kept in (folder / "wandb").glob(f"*run-*-{number}"):
            shutil.rmtree(kept, ignore_errors=True)
    for link in (folder / "wandb").glob("*"):  # latest-run, debug.log
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)
    with suppress(OSError):  # others are in there
        (folder / "wandb").rmdir()
    (folder / WANDB_ID).unlink(missing_ok=True)


def settings_stamp(folder: Path) -> int | None:
    """When the settings in a folder were written; None: there are none. A run that has begun has written its own."""
    try:
        return (folder / "config.yaml").stat().st_mtime_ns
    except OSError:
        return None


def leave_error(folder: Path, text: str, *, untouched: bool) -> None:
    """Keeps an error in the folder of its run; where that is to stay as it is, with the notes of the sweep.

    A disk that is full takes neither.
    """
    notes = os.environ.get(NOTES)
    with suppress(OSError):
        if not untouched:
            files.write(folder / "error.txt", text.rstrip() + "\n")
        elif notes:
            note = {"folder": str(folder.absolute()), "error": text, "in_use": locks.owner(folder / ".run") is not None}
            files.write(Path(notes) / f"{naming.digest(str(folder))}.json", json.dumps(note))


def notes_folder(sweep: Path) -> Path:
    """Where the runs of one call of a sweep leave their notes."""
    return sweep / f".notes-{locks.here()}"


def read_notes(sweep: Path) -> dict[Path, str]:
    """What runs of this call of a sweep have left instead of an error in their folder. The notes are removed.

    Who left a run to another process that has finished it meanwhile has nothing to say.
    """
    place = notes_folder(sweep)
    found = [json.loads(path.read_text("utf-8")) for path in sorted(place.glob("*.json"))]
    shutil.rmtree(place, ignore_errors=True)
    notes = {Path(note["folder"]): note for note in found}
    return {
        folder: note["error"] for folder, note in notes.items() if not (note["in_use"] and resuming.is_finished(folder))
    }


@contextmanager
def log_to_screen_alone() -> Iterator[None]:
    """The log in a folder that is to stay as it is does not grow."""
    root = logging.getLogger()
    handlers = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
    for handler in handlers:
        root.removeHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.addHandler(handler)


@contextmanager
def disk_errors(folder: Path, *, sweep: bool) -> Iterator[None]:
    """What cannot be written is one line that says how to go on, wherever in a run it happens.

    Raises:
        UserError: in place of an error of the disk.
    """
    try:
        yield
    except Exception as error:
        number = files.disk_error(error)
        if number is None:
            raise
        text = str(error)
        if not isinstance(error, files.WriteError):
            place = getattr(error, "filename", None) or folder
            text = f"cannot write {place}: {files.describe(number, folder)}"
        if sweep:
            how = "Make room, then go on with the sweep by the same command"
        elif can_go_on(folder):
            resume = f"{entry.program()} {paths.typed('resume', paths.readable(folder))}"
            how = f"What was kept before is whole: make room, then go on with {resume}"
        else:
            how = "Make room, then start the run again: nothing was kept yet to go on from"
        raise UserError(f"{text}. {how}") from error


def _is_ours(folder: Path) -> bool:
    """Whether the settings in a folder, if there are any, are a run's, and not another program's."""
    names = {path.name for path in folder.glob("*")}
    if "config.yaml" not in names:  # a run that failed before it wrote them leaves its log and its error
        return not names & {*LOGS} - {"run.log", "error.txt"}
    saved = resuming.saved_config(folder)
    return saved is not None and {"method", "model", "data", "seed"} <= saved.keys()


def _known(folder: Path) -> str:
    """The method of a run and the time of its last result or state."""
    method = (resuming.saved_config(folder) or {}).get("method")
    what = f"{method['name']}, " if isinstance(method, dict) and "name" in method else ""
    times = [(folder / name).stat().st_mtime for name in ("results.json", "last.ckpt") if (folder / name).exists()]
    return f" ({what}{datetime.fromtimestamp(max(times)):%Y-%m-%d %H:%M})"


def _models(cfg: DictConfig) -> Iterable[tuple[str, Path]]:
    """(setting, file) of every model that the run is to read."""
    for name in ("checkpoint", "init", "teacher"):
        if cfg[name] is not None:
            yield name, model_file(cfg[name])
    if cfg.model.pretrained is not None:
        yield "model.pretrained", weights_file(cfg.model.pretrained)
    if cfg.checkpoints is not None:
        yield from (("checkpoints", path) for path in model_files(cfg.checkpoints))
