"""Paths as users type them: expanded, checked before time is spent, and put into Hydra's grammar."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from robustft.common.errors import UserError, reason


def expand(typed: "str | Path") -> Path:
    """Make a path of what a user typed: ``~`` and ``~name`` at its start are home folders.

    Raises:
        UserError: there is no such home folder, or a line end is part of the path.
    """
    refuse_line_ends([str(typed)])
    try:
        return Path(typed).expanduser()
    except RuntimeError as error:
        raise UserError(f"{typed}: no home folder is known for that name. Give the whole path") from error


def cache_folder() -> Path:
    """``$ROBUSTFT_CACHE``, else ``robustft`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``).

    A variable that is empty counts as unset, and so does a relative ``$XDG_CACHE_HOME``, as its specification says.
    """
    own, shared = (os.environ.get(name, "") for name in ("ROBUSTFT_CACHE", "XDG_CACHE_HOME"))
    if own.strip():
        return expand(own)
    if not os.path.isabs(shared):
        shared = os.path.expanduser("~/.cache")
    if not os.path.isabs(shared):  # a user without a home, in a container
        return Path(tempfile.gettempdir()) / f"robustft-{getattr(os, 'getuid', str)()}"
    return Path(shared) / "robustft"


def located(typed: str, root: str | None) -> Path:
    """Make a path of what a user typed, below a folder where that is given and the path is not absolute."""
    path = expand(typed)
    return path if root is None or path.is_absolute() else expand(root) / path


def refuse_line_ends(arguments: Iterable[str]) -> None:
    r"""Refuse arguments that came with a line end, as those of a script that was saved on Windows do.

    Raises:
        UserError: names the first argument with ``\r`` or ``\n`` in it.
    """
    for argument in arguments:
        if "\r" in argument:
            raise UserError(
                f"{argument!r} holds a Windows line end (\\r): save the file that it comes from with Unix line ends"
                " (dos2unix FILE)"
            )
        if "\n" in argument:
            raise UserError(f"{argument!r} holds a line end (\\n): give it on one line")


def quote(text: "str | Path") -> str:
    """Put any text in quotes so that Hydra's grammar reads that very text; ``${...}`` stays a reference."""
    mark = '"' if "'" in str(text) and '"' not in str(text) else "'"
    # A backslash counts as one only before a quote: those are doubled, all others stand for themselves.
    inner = re.sub(rf"(\\*){mark}", rf"\g<1>\g<1>\\{mark}", str(text))
    inner = re.sub(r"\\+$", lambda found: found[0] * 2, inner)
    return f"{mark}{inner}{mark}"


def typed(key: str, value: "str | Path") -> str:
    """What to type in a shell so that a setting has a value: in quotes only where these are needed."""
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return f"{key}={text}"
    whole = re.sub(r'([\\"$`])', r"\\\1", f"{key}={quote(text)}")
    return f'"{whole}"'


def readable(path: Path) -> str:
    """Shorten a path for messages and for typing it again: relative where it lies in the current folder.

    Example:
        >>> readable(Path.cwd() / "runs" / "mine") == str(Path("runs") / "mine")
        True
    """
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def refuse_filled(folder: Path) -> None:
    """Refuse to write into a folder that holds something, or where a file is.

    Raises:
        UserError: names it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give a new folder")


def make_folder(path: Path, what: str) -> Path:
    """Make a folder in which files can be made, with its parents; one that is there will do.

    Args:
        what: the option or setting that named it, for the message.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        there = next(place for place in (path, *path.parents) if place.exists() or place == place.parent)
        why = f"{there} is a file" if there.is_file() else reason(error)
        raise UserError(f"{what}={path}: cannot write into a folder there ({why}). Choose another place") from error
    return path


def for_file(path: Path, what: str) -> Path:
    """Check that a file can be made, or replaced, at a path; its folder is made.

    Raises:
        UserError: it cannot; ``what`` is the option that named it.
    """
    if path.is_dir():
        raise UserError(f"{what}={path}: that is a folder. Expected the name of a file")
    try:
        make_folder(path.parent, what)
    except UserError as error:
        raise UserError(str(error).replace(f"{what}={path.parent}:", f"{what}={path}:", 1)) from error
    return path
