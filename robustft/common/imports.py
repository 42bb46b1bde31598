"""Importing what is large, quickly."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick() -> Iterator[None]:
    """Import without looking for garbage meanwhile, and never look at what was imported: torch and what comes with it
    are millions of objects that stay. A sixth of the time of imports goes to that.

    Example:
        >>> with quick():
        ...     import robustft.experiment
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
