"""Rendered sets on disk, so that they are rendered once."""

import hashlib
import logging
from functools import lru_cache
from pathlib import Path

import torch
from rich import get_console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from robustft.common.cache import cache_folder, optional
from robustft.common.files import atomic
from robustft.common.wording import counted
from robustft.data.scenes.generate import Rendered, generate
from robustft.data.scenes.recipes import Recipe

log = logging.getLogger(__name__)


def default_folder() -> Path:
    return cache_folder() / "scenes"


@lru_cache
def sources() -> bytes:
    """The code that draws: another version of it must not find this one's images."""
    modules = ("shapes", "contexts", "styles", "recipes", "render", "generate")
    return b"".join(Path(__file__).with_name(f"{module}.py").read_bytes() for module in modules)


def cached(recipe: Recipe, count: int, *, size: int, seed: int, name: str, folder: Path) -> Rendered:
    """`generate(...)`, from `folder` if it is there; else rendered, with progress, and left there.

    A folder that cannot be written to costs time, not the run.
    """
    arguments = f"{recipe}{count}/{size}/{seed}/{name}/{torch.__version__}"
    fingerprint = hashlib.sha256(sources() + arguments.encode()).hexdigest()[:16]
    path = folder / f"{name}-{fingerprint}.safetensors"
    try:
        return Rendered(**load_file(path))
    except (OSError, SafetensorError, TypeError):  # not there, or damaged: render it (again)
        pass
    log.info("rendering %s of %s", counted(count, "image"), name)
    with Progress(transient=True, disable=not get_console().is_terminal) as progress:
        task = progress.add_task(f"rendering {counted(count, 'image')} of {name}", total=count)
        rendered = generate(
            recipe,
            count,
            size=size,
            seed=seed,
            name=name,
            progress=lambda done: progress.update(task, completed=done),
        )
    with optional(path.parent), atomic(path) as partial:
        save_file(rendered._asdict(), partial)
    return rendered
