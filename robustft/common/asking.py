"""Components are given what they ask for: by the names of their parameters."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from robustft.common.errors import UserError


def given(
    make: Callable[..., Any], offered: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """``make`` with its parameters bound: all of ``settings``, and what it asks for of ``offered``.

    Example:
        >>> given(lambda student, alpha: student * alpha, {"student": 6, "teacher": 5}, {"alpha": 7})()
        42
    """
    settings = settings or {}
    asked = [name for name in _parameters(make) if name in offered and name not in settings]
    return partial(make, **{name: offered[name] for name in asked}, **settings)


def lacking(make: Callable[..., Any], offered: Iterable[str], settings: Iterable[str] = ()) -> list[str]:
    """Parameters without a default that are in neither: nothing can be made then."""
    there = {*offered, *settings}
    return [
        name
        for name, parameter in _parameters(make).items()
        if parameter.default is parameter.empty and name not in there
    ]


def refuse_unknown(make: Callable[..., Any], settings: Iterable[str], group: str) -> None:
    """Refuse a setting that ``make`` does not take.

    Args:
        group: what settings are called when they are typed: ``group.name``.

    Raises:
        UserError: names it, and what is taken.
    """
    open_ended = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(make).parameters.values())
    for name in settings:
        if name not in _parameters(make) and not open_ended:
            who = f"{make.__module__}.{getattr(make, '__qualname__', make)}"
            raise UserError(
                f"{group}.{name}: {who} takes no such thing, but {', '.join(_parameters(make)) or 'nothing'}"
            )


def _parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(make).parameters.items() if p.kind in by_name}
