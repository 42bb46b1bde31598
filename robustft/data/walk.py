"""Which files below a folder are images, by their names, and when they changed; nothing heavy is imported."""

import os
from collections.abc import Iterator
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
HEIF = (".heic", ".heif", ".hif")
OWN_EXTENSIONS = (*EXTENSIONS, ".jfif", ".jpe", ".gif", ".avif", ".jp2", ".apng", *HEIF)
ENDINGS = frozenset(OWN_EXTENSIONS)
SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
UNKNOWN = -2  # size and time of a file that has not been looked at
QUICK_LOOK_S = 3e-5  # at a file: by a local disk that has it in memory, many times as quick as across a network
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image by its name: no hidden file, and an extension of one."""
    return name[0] != "." and name[name.rfind(".") :].lower() in ENDINGS


def looks_like_image(path: str) -> bool:
    """Whether a file without an extension begins as an image does."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def images_below(folder: Path) -> Iterator[str]:
    """Paths of the images below a folder, relative to it; links are followed, hidden and system files passed over.

    Raises:
        OSError: a folder cannot be looked into.
    """
    seen: set[tuple[int, int]] = set()

    def below(place: str, before: str) -> Iterator[str]:
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that it lies in
            return
        seen.add((status.st_dev, status.st_ino))
        inside = []
        with os.scandir(place) as entries:
            for entry in entries:
                name = entry.name
                if is_folder(entry):
                    inside.append(name)
                elif is_image_name(name) or ("." not in name and looks_like_image(entry.path)):
                    yield before + name
        for name in sorted(inside):
            if not is_system(name):
                yield from below(os.path.join(place, name), f"{before}{name}{os.sep}")

    return below(os.fspath(folder), "")


def folders_in(folder: str | Path) -> list[str]:
    """The folders in a folder, sorted, less those that programs leave; links to folders are some.

    Raises:
        OSError: it cannot be looked into.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not is_system(entry.name) and is_folder(entry))


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, or a link to one; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_system(folder: str) -> bool:
    """Whether a folder is one that programs leave: hidden, of a Mac's archive, or a file system's own."""
    return folder.startswith(".") or folder in SYSTEM


def stamp(path: str | bytes, folder: int | None) -> tuple[int, int]:
    """Size and time of the last change (ns) of a file; -1 where it cannot be looked at.

    Args:
        folder: a descriptor of the folder that the path is relative to.
    """
    try:
        status = os.stat(path, dir_fd=folder)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
