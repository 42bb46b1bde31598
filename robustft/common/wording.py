"""Wording of messages: counts with their nouns, the first few of some names, what others' errors say, in short."""

from collections import Counter
from collections.abc import Sequence

MOST = 160  # letters of another's message


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number of things with its noun.

    Args:
        one: the noun in the singular.
        many: in the plural; None: the singular with an s.

    Example:
        >>> counted(1, "image"), counted(1280, "image"), counted(0, "class", "classes")
        ('1 image', '1,280 images', '0 classes')
    """
    return f"{number:,} {noun(number, one, many)}"


def noun(number: int, one: str, many: str | None = None) -> str:
    """Give the noun alone, for a number that is written apart; the arguments are those of `counted`."""
    return one if number == 1 else f"{one}s" if many is None else many


def some(names: Sequence[str], most: int = 3) -> str:
    """Write the first few of some names, with an ellipsis where there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def short(text: str, most: int = MOST) -> str:
    """Cut a text that is longer than so many letters, between two words, and end it with an ellipsis.

    Example:
        >>> short("An error happened while it was loaded", 20)
        'An error happened …'
    """
    if len(text) <= most:
        return text
    words = text[: most - 1].rsplit(maxsplit=1)
    if len(words) == 1 or len(words[0]) < most // 2:  # the last word is most of it
        return f"{text[: most - 1]}…"
    return f"{words[0].rstrip(' ,;:')} …"


def first_line(error: BaseException, most: int = MOST) -> str:
    """Give the first line of an error's text, in short; else its name.

    Example:
        >>> first_line(OSError("it is gone\\nfor good")), first_line(KeyError())
        ('it is gone', 'KeyError')
    """
    return short((str(error).strip().splitlines() or [type(error).__name__])[0].strip(), most)


def difference(found: Sequence[str], expected: Sequence[str]) -> str:
    """Say how some names differ from those that were expected: what is missing, what is new, or the first out of place.

    Args:
        found: names, in order.
        expected: likewise, and not the same.

    Example:
        >>> difference(["boat", "cup"], ["boat", "mug"]), difference(["b", "a"], ["a", "b"])
        ('cup is new, mug is missing', 'the same in another order: b is where a was')
    """
    there, before = Counter(found), Counter(expected)
    new, missing = (list(more.elements()) for more in (there - before, before - there))
    parts = [
        f"{some(names)} {noun(len(names), 'is', 'are')} {what}"
        for names, what in ((new, "new"), (missing, "missing"))
        if names
    ]
    if not parts:
        one, other = next(pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1])
        parts = [f"the same in another order: {one} is where {other} was"]
    return ", ".join(parts)
