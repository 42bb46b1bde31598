"""What `robustft bench` knows by name: models, steps, methods. Without torch: mistakes are told at once."""

from collections.abc import Sequence

from robustft.cli import sources
from robustft.cli.described import takes
from robustft.common.errors import UserError

# Name of a model -> (open_clip's name, classes).
MODELS = {
    "tiny": ("tiny", 10),
    "vitb32": ("ViT-B-32-quickgelu", 1000),
    "vitb16": ("ViT-B-16-quickgelu", 1000),
}
VARIANTS = ("vanilla", "direct", "exact", "cached")
MORE = ("one_backward", "last_layer", "no_fill")  # measured on request
TITLES = {
    "vanilla": "vanilla fine-tuning",
    "direct": "the method, written directly",
    "exact": "the method, here",
    "cached": "the method, maps of the teacher known",
    "one_backward": "the method, one backward pass of both terms",
    "last_layer": "the method, relevance of the last layer",
    "no_fill": "the method, random masks without a fill",
}
ALL = "all"


def chosen(names: Sequence[str]) -> list[str]:
    """The methods to time: those that train by steps of their own, by ``takes`` of their YAML, for "all".

    Raises:
        UserError: there is no such method, or it has no step of its own.
    """
    known = sources.groups()["method"]
    timed = [name for name in known if _has_steps(name)]
    for name in names:
        method = name.partition(",")[0]
        if name != ALL and method not in known:
            raise UserError(f"--methods {name}: no such method. There are {', '.join(timed)}")
        if name != ALL and method not in timed:
            raise UserError(f"--methods {name}: it has no step through the image tower. There are {', '.join(timed)}")
    return list(dict.fromkeys(found for name in names for found in (timed if name == ALL else [name])))


def _has_steps(name: str) -> bool:
    told = takes("method", name)
    return bool(told.get("trains")) and not told.get("features")
