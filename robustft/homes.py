"""Folders that libraries keep in the user's home: where one cannot be written, a temporary one stands in for it.

They would say so in many lines, or fail. A container's user may have no home, and a home may be read-only.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from platformdirs import user_cache_dir, user_config_dir, user_data_dir

# By the variable that names another: matplotlib's font list, W&B's log and what it is about to send.
FOLDERS = {
    "MPLCONFIGDIR": user_config_dir("matplotlib"),
    "WANDB_CACHE_DIR": user_cache_dir("wandb"),
    "WANDB_DATA_DIR": user_data_dir("wandb"),
}


def stand_in() -> None:
    """Name a temporary folder to every library that cannot write into its own. To be called before they are imported.

    The folder goes when this process ends; processes that it starts share it.
    """
    without = [name for name, folder in FOLDERS.items() if not os.environ.get(name) and not _writable(Path(folder))]
    if without:
        folder = tempfile.mkdtemp(prefix="robustft-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.update(dict.fromkeys(without, folder))


def _writable(folder: Path) -> bool:
    there = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), None)
    try:
        with tempfile.TemporaryDirectory(dir=there):
            return there is not None
    except OSError:
        return False
