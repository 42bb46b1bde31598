"""What is said of classes to make the zero-shot head: templates of prompts, and classes that have several names."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from robustft.common.errors import UserError
from robustft.common.paths import expand

Template = str | Callable[[str], str]
PRESETS = ("imagenet", "simple", "plain")


def templates_of(given: str | Sequence[str]) -> list[Template]:
    """Templates of prompts: a preset's, those of a file (one a line), or these.

    Args:
        given: `imagenet` (OpenAI's 80), `simple` (its best 7), `plain` ("a photo of a {}."), a file, or texts with {}.

    Raises:
        UserError: there is no such preset or file, or a template has no place for the name.
    """
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    presets = {
        "imagenet": OPENAI_IMAGENET_TEMPLATES,
        "simple": SIMPLE_IMAGENET_TEMPLATES,
        "plain": ["a photo of a {}."],
    }
    if isinstance(given, str) and given in presets:
        return list(presets[given])
    if isinstance(given, str):
        lines = _lines(expand(given), given)
        where = given
    else:
        lines, where = list(given), "data.templates"
    if not lines:
        raise UserError(f"{where}: no templates in it. Expected texts with {{}} in the place of the class's name")
    for line in lines:
        if line.count("{}") != 1 or line.replace("{}", "").count("{"):
            raise UserError(f"{where}: {line!r} is no template: it needs {{}} once, in the place of the class's name")
    return list(lines)


def _lines(path: Path, typed: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.templates={typed}: neither a preset ({', '.join(PRESETS)}) nor a file that can be read. Expected one"
            " of them, or a list of texts with {}"
        ) from error


def with_synonyms(templates: Sequence[Template], names: Sequence[Sequence[str]]) -> list[Template]:
    """Templates for classes of which some have several names: each name of a class counts as much as the others.

    The head is the mean over templates, of which there have to be as many for every class: each is repeated for the
    least common multiple of the numbers of names, and a class goes round its names.
    """
    rounds = math.lcm(*(len(of_class) for of_class in names))
    if rounds == 1:
        return list(templates)
    known = {first: list(of_class) for of_class in names for first in of_class[:1]}
    return [partial(_say, template, known, turn) for template in templates for turn in range(rounds)]


def _say(template: Template, known: dict[str, list[str]], turn: int, name: str) -> str:
    names = known.get(name, [name])
    chosen = names[turn % len(names)]
    return template.format(chosen) if isinstance(template, str) else template(chosen)


def shown(templates: Sequence[Template]) -> list[str]:
    """Templates as text, {} in the place of the name."""
    said = [template if isinstance(template, str) else template("{}") for template in templates]
    return list(dict.fromkeys(said))
