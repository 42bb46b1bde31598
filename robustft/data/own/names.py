"""What classes are called: folder names made readable, WordNet ids translated, names of the user's own."""

import csv
import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from robustft.common.errors import UserError
from robustft.common.wording import counted, noun, some

log = logging.getLogger(__name__)

WORDNET_ID = re.compile(r"n\d{8}")
NO_WORDS = re.compile(r"[\d\W_]*|(class|category|label|cls|id|c|n)?[\W_]*(\d+|[a-z])", re.IGNORECASE)
# One that separates words, not one that spells them: see `readable`.
HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_])(?!(?:a|o)-)", re.IGNORECASE)
SYNONYMS = 4  # names a class may have
SETTING = "data.class_names"
FORMATS = 'JSON {"folder": "name", …}, or CSV with the columns folder and name'


def names_of(
    folders: Sequence[str], given: Mapping[str, Sequence[str]] | None, setting: str = SETTING
) -> list[list[str]]:
    """The names of each class, the first of which stands for it in tables.

    Args:
        folders: the classes as they are called on disk, in their order.
        given: the user's own names, by folder; None: made from the folders' names.
        setting: with which they are given, for messages.

    Raises:
        UserError: classes without a name, names without a class, or one name for two classes.
    """
    if given is None:
        names = [[readable(folder)] for folder in folders]
        _warn(folders, [first for first, *_ in names], setting)
    else:
        unnamed = [folder for folder in folders if folder not in given]
        if unnamed:
            raise UserError(
                f"{setting} has no name for {len(unnamed)} of the {counted(len(folders), 'class', 'classes')}"
                f" ({some(unnamed)}): it has to name all of them"
            )
        if spare := [folder for folder in given if folder not in folders]:
            log.info("%s: %s without images (%s)", setting, counted(len(spare), "class", "classes"), some(spare))
        names = [list(given[folder]) for folder in folders]
    _refuse_collisions(folders, names, setting)
    return names


def readable(folder: str) -> str:
    """The name of a class folder as one says it: `art_painting`, `GoldenRetriever`, `green-cup` and `n02099601` are art
    painting, golden retriever, green cup and golden retriever.

    Hyphens are separators where nothing else separates words, and spelling elsewhere (`four-poster_bed`), behind a
    single letter (`t-shirt`), around a single a or o (`jack-o-lantern`) and beside a digit (`covid-19`).
    """
    if WORDNET_ID.fullmatch(folder):
        return wordnet_name(folder) or folder
    text = re.sub(r"^\d+\s*[._-]\s*(?=\D)", "", folder)  # 001.Black_footed_Albatross
    if not re.search(r"[_+.\s]", text):
        text = HYPHEN.sub(" ", text)
    text = re.sub(r"[_+.]+", " ", text)
    parts = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z])|(?<=[A-Z])(?=[A-Z][a-z])", "\0", text).split("\0")
    if len(parts) > 1:  # camel case says nothing about capitals
        parts = [part if part.strip().isupper() and len(part.strip()) > 1 else part.lower() for part in parts]
    return " ".join(" ".join(parts).split()) or folder


@cache
def _wordnet_names() -> dict[str, str]:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    every = ImageNetInfo("imagenet-22k")
    names = {wnid: every.label_name_to_description(wnid).split(",")[0] for wnid in every.label_names()}
    return names | dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))


def wordnet_name(wnid: str) -> str | None:
    """The name of a WordNet id: of ImageNet's 1000 classes open_clip's, of others timm's; None where both lack it."""
    return _wordnet_names().get(wnid)


def read_names(path: Path, setting: str = SETTING) -> dict[str, list[str]]:
    """Names of classes by folder, from .json ({folder: name or [names]}) or .csv (header: folder,name).

    Raises:
        UserError: the file cannot be read, or is neither.
    """
    what, kind = f"{setting}={path}", path.suffix.lower()
    if kind not in (".json", ".csv"):
        raise UserError(f"{what}: expected .json or .csv: {FORMATS}")
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}. Expected {FORMATS}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: it is no text in UTF-8. Expected {FORMATS}") from error
    if kind == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        if not rows or not {"folder", "name"} <= rows[0].keys():
            found = ", ".join(map(str, rows[0])) if rows else "nothing"
            raise UserError(f"{what}: expected a header with the columns folder and name, found {found}")
        pairs = [(row["folder"], row["name"]) for row in rows]
        read: object = {folder: [name for of, name in pairs if of == folder] for folder, _ in pairs}
    else:
        try:
            read = json.loads(text)
        except (ValueError, RecursionError) as error:
            line = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UserError(f"{what}: a mistake{line}, so it is no JSON. Expected {FORMATS}") from error
    if not isinstance(read, dict):
        raise UserError(f"{what}: it holds a {type(read).__name__}. Expected {FORMATS}")
    names = {}
    for folder, given in read.items():
        several = [given] if isinstance(given, str) else given
        good = isinstance(several, list) and all(isinstance(name, str) and name and name.strip() for name in several)
        if not good or not 1 <= len(several) <= SYNONYMS:
            raise UserError(
                f"{what}: {folder!r} is called {given!r}, expected a name or a list of up to {SYNONYMS} names"
            )
        names[str(folder)] = [name.strip() for name in several]
    return names


def _warn(folders: Sequence[str], names: Sequence[str], setting: str) -> None:
    """Names that are no words make a zero-shot head without meaning."""
    empty = [
        f for f, name in zip(folders, names, strict=True) if NO_WORDS.fullmatch(name) or WORDNET_ID.fullmatch(name)
    ]
    if empty:
        log.warning(
            "%d of the %s %s (%s): the zero-shot model, and with it the head that is made from them, cannot know"
            " what they show. Name them: %s=FILE.json with"
            ' {"%s": "what it shows", ...}',
            *(len(empty), counted(len(folders), "class", "classes")),
            noun(len(empty), "has a name that is no word", "have names that are no words"),
            *(some(empty), setting, empty[0]),
        )


def _refuse_collisions(folders: Sequence[str], names: Sequence[Sequence[str]], setting: str) -> None:
    seen: dict[str, str] = {}
    for folder, of_class in zip(folders, names, strict=True):
        for name in of_class:
            other = seen.setdefault(name.lower(), folder)
            if other == folder:
                continue
            if WORDNET_ID.fullmatch(folder) and WORDNET_ID.fullmatch(other):  # ImageNet has two cranes
                log.warning("the classes %s and %s are both called %r", other, folder, name)
                continue
            raise UserError(
                f"the classes {other} and {folder} are both called {name!r}: no model could tell them apart by name."
                f" Merge their folders, or give them names of their own: {setting}=FILE"
            )
