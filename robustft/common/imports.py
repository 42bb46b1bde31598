"""Importing what is large, quickly."""

import gc
import sys
from importlib import import_module
from types import ModuleType


def quickly(name: str) -> ModuleType:
    """Import a module without looking for garbage meanwhile, and never look at what came with it: torch and the others
    are millions of objects that stay. A sixth of the time of imports goes to that.

    Example:
        >>> quickly("json").dumps([])
        '[]'
    """
    if name in sys.modules:  # what is there by now may be garbage one day
        return sys.modules[name]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        module = import_module(name)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
    return module
