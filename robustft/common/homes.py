"""Folders that libraries keep in the user's home: where one cannot be written, a temporary one stands in for it.

They would say so in many lines, or fail. A container's user may have no home, and a home may be read-only.
"""

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from platformdirs import user_cache_dir, user_config_dir, user_data_dir

log = logging.getLogger(__name__)

# By the variable that names another: matplotlib's font list, W&B's log and what it is about to send.
FOLDERS = {
    "MPLCONFIGDIR": partial(user_config_dir, "matplotlib"),
    "WANDB_CACHE_DIR": partial(user_cache_dir, "wandb"),
    "WANDB_DATA_DIR": partial(user_data_dir, "wandb"),
}


def stand_in() -> None:
    """Name a temporary folder to every library that cannot write into its own. To be called before they are imported.

    A user without any home gets one. The folder goes when this process ends; processes that it starts share it.
    """
    homeless = ["HOME"] if os.path.expanduser("~") == "~" else []
    without = [name for name, folder in FOLDERS.items() if not os.environ.get(name) and not _writable(folder)]
    if homeless or without:
        folder = tempfile.mkdtemp(prefix="robustft-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.update(dict.fromkeys([*homeless, *without], folder))
    if homeless:
        log.warning("this user has no home: what is computed is kept for this run alone. HOME=DIR names one")


def _writable(where: Callable[[], str]) -> bool:
    try:
        folder = Path(where())
        there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        with tempfile.TemporaryDirectory(dir=there):
            return True
    except (OSError, RuntimeError, StopIteration):  # the second: the user has no home
        return False
