"""C's allocator, told to keep the memory that a step frees: the next one asks for the same."""

import ctypes
import os
import sys

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of mallopt in glibc's malloc.h
NEVER = -1


def keep_freed() -> bool:
    """Keep large blocks that are freed in the process, where C's library is glibc; called again it does nothing more.

    By itself glibc gives those above 32 MB back to the system, which hands them out again page by page, each cleared
    first: of CLIP's towers that is every gradient of an embedding and many an activation, in every step. What a process
    has taken once it then holds until it ends.

    Returns:
        Whether it was done: not with another library, nor where the user has set glibc's own variables.

    Example:
        >>> keep_freed() in (True, False)
        True
    """
    if sys.platform != "linux" or _chosen_by_user():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, NEVER))


def _chosen_by_user() -> bool:
    own = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return any(name in os.environ for name in own) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
