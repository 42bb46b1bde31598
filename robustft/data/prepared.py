"""Prepared copies: the images of a set as the model's transform leaves them, in a few large files.

The transform is deterministic, so it needs to happen once (`prepare.py`). A copy gives the items that the image
files would give, by their position: whatever decides on the order (the sampler, the hold-out, a resumed epoch,
several devices) works unchanged.

    FOLDER/<set>-<size>px-<interpolation>[-squash][-<crop>][-jpeg]/
        shard-00000.safetensors     data: the pixels [3, size, size] of 512 images, or their JPEG streams;
                                    length, crc32: of each; metadata: what they were made from
        index.safetensors           start, length, crc32 of all images; metadata: what the copy was made from

A shard appears under its name when it is complete, and the index when all shards are: what a killed preparation
leaves is never taken for a copy.
"""

import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from robustft.common.errors import UserError
from robustft.common.terminal import tracked
from robustft.common.wording import counted
from robustft.data.folders import ImageFiles
from robustft.data.loading import usable_cpus
from robustft.data.sets import Batch

log = logging.getLogger(__name__)

SHARD = 512  # images
JPEG = {"quality": 95, "subsampling": 0}  # of a lossy copy: colours at full resolution

Table = dict[str, np.ndarray]  # one entry per image: "start" and "length" in its shard's file, "crc32" of its bytes


class PreparedImages(Dataset):
    """The items of `files`, read from its copy in `folder`.

    Raises:
        UserError: a shard is missing or cut short; when images are read: one is not as it was written.
    """

    def __init__(self, files: ImageFiles, folder: Path, lossy: bool, table: Table) -> None:
        self.files, self.folder, self.lossy = files, folder, lossy
        self.labels = files.labels
        self.start, self.length, self.crc32 = table["start"], table["length"], table["crc32"]
        if len(self.start) != len(self):
            raise _damaged(index_path(folder), f"{counted(len(self.start), 'image')} instead of {len(self):,}")
        for shard, images in enumerate(shards(len(self))):
            path, end = shard_path(folder, shard), int(self.start[images[-1]] + self.length[images[-1]])
            size = path.stat().st_size if path.exists() else 0
            if size != end:
                raise _damaged(path, f"{size:,} bytes instead of {end:,}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], int, int]:
        return self.__getitems__([index]).images[0], int(self.labels[index]), index

    def __getitems__(self, indices: list[int]) -> Batch:
        """The bytes of each image go straight into the batch (the loader prefers this to item by item)."""
        size = self.files.preprocess.size
        images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        rows = images.view(len(indices), -1).numpy()
        for row, index in enumerate(indices):
            data, problem = self._read(index)
            if problem:
                raise _damaged(shard_path(self.folder, index // SHARD), problem)
            if self.lossy:
                images[row] = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            else:
                rows[row] = np.frombuffer(data, np.uint8)
        chosen = torch.tensor(indices)
        return Batch(images, self.labels[chosen], chosen)

    def original(self, index: int) -> Image.Image:
        """The image before the transform, from its file: a crop of a copy would be a crop of a crop."""
        if self.lossy:
            raise UserError(
                "data.lossy=true trains on a copy as the transform leaves images, and augment crops the images"
                " themselves: leave out one of the two"
            )
        return self.files.original(index)

    def key(self, index: int) -> str:
        return self.files.key(index)

    def identity(self, chosen: Int64[Tensor, " images"] | None = None) -> str:
        """That of the files where the pixels are the same: scores remembered for one hold for the other."""
        return self.files.identity(chosen) + (f" JPEG {JPEG}" if self.lossy else "")

    def damaged(self, title: str) -> dict[str, str]:
        """Reads every image; the shards that are not as they were written, and what is wrong with each."""

        def problem(images: range) -> str | None:
            return next((problem for _, problem in map(self._read, images) if problem), None)

        in_shards = shards(len(self))
        with ThreadPoolExecutor(usable_cpus()) as pool:
            problems = list(tracked(pool.map(problem, in_shards), title, len(in_shards)))
        return {str(shard_path(self.folder, shard)): text for shard, text in enumerate(problems) if text}

    def _read(self, index: int) -> tuple[bytes, str | None]:
        """The bytes of an image, and what is wrong with them."""
        try:
            file = opened(str(shard_path(self.folder, index // SHARD)))
            data = read_at(file, int(self.length[index]), int(self.start[index]))
        except OSError as error:
            return b"", error.strerror or repr(error)
        return data, None if zlib.crc32(data) == self.crc32[index] else f"wrong checksum of {self.key(index)}"


def open_copy(name: str, files: ImageFiles, place: Path, lossy: bool = False) -> PreparedImages | ImageFiles:
    """The copy of `files` in the folder `place`; `files` itself where there is none, or where it was made from other
    files, by another transform or other versions of the libraries (a line in the log says so).

    Raises:
        UserError: the copy is damaged; or `lossy` pixels are asked for, and there is no copy to give them.
    """
    folder = copy_folder(name, files, place, lossy)
    known = read_index(folder)
    if known is None and index_path(folder).exists():
        raise _damaged(index_path(folder), "cannot be read")
    reason = "there is none"
    if known is not None:
        was, now = known[0], fingerprint(source_digests(files), recipe(files, lossy))
        changed = [f"{key} {was.get(key)}, now {now[key]}" for key in now if was.get(key) != now[key]]
        if not changed:
            return PreparedImages(files, folder, lossy, known[1])
        same_files = was.get("files") == now["files"]
        reason = f"it is out of date: {', '.join(changed) if same_files else 'image files have changed since'}"
    if lossy:
        raise UserError(
            f"data.lossy=true needs a prepared copy in {folder}, but {reason}. Make one with prepare=true, or "
            "leave data.lossy out."
        )
    if known is not None:
        log.info("%s: not using the prepared copy, %s. Renew it with prepare=true", name, reason)
    return files


def copy_folder(name: str, files: ImageFiles, place: Path, lossy: bool) -> Path:
    """Where the copy of a set belongs: models of one transform share it, whatever their mean and deviation."""
    preprocess = files.preprocess
    kind = [f"{preprocess.size}px", preprocess.interpolation, *map(str, preprocess.unusual().values())]
    return place / "-".join([name, *kind, *(["jpeg"] if lossy else [])])


def index_path(folder: Path) -> Path:
    return folder / "index.safetensors"


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05}.safetensors"


def shards(images: int) -> list[range]:
    """The positions of the images of each shard."""
    return [range(first, min(first + SHARD, images)) for first in range(0, images, SHARD)]


def recipe(files: ImageFiles, lossy: bool) -> dict[str, str]:
    """What the bytes of a copy depend on besides the image files."""
    return {
        "format": "1",
        "pixels": f"JPEG {JPEG}" if lossy else "exact",
        **files.pixels(),
    }


def source_digests(files: ImageFiles) -> list[str]:
    """Of each shard: a digest of the names, sizes and times of its image files (seconds: archives keep no less)."""
    stamps = files.stamps(np.arange(len(files)))

    def digest(images: range) -> str:
        parts = hashlib.sha256()
        values = (files.relative(np.arange(images.start, images.stop)), stamps[images.start : images.stop].tolist())
        for name, (size, time) in zip(*values, strict=True):
            stamp = f"{size} {time // 10**9}" if size >= 0 else "unreadable"
            parts.update(b"%s\0%s\0" % (name, stamp.encode()))
        return parts.hexdigest()

    return [digest(images) for images in shards(len(files))]


def fingerprint(sources: Sequence[str], recipe: dict[str, str]) -> dict[str, str]:
    """What a whole copy was made from."""
    return {"files": hashlib.sha256("".join(sources).encode()).hexdigest(), **recipe}


def read_index(folder: Path) -> tuple[dict[str, str], Table] | None:
    """What the copy was made from and the table of its images; None where there is no index that can be read."""
    try:
        with safe_open(index_path(folder), "numpy") as index:
            table = {name: index.get_tensor(name) for name in ("start", "length", "crc32")}
            made_from = _made_from(index.metadata())
    except (OSError, ValueError, SafetensorError, RecursionError):
        return None
    shapes = {values.shape for values in table.values()}
    whole = len(shapes) == 1 and all(values.ndim == 1 and values.dtype.kind in "iu" for values in table.values())
    return (made_from, table) if whole else None


def read_shard(path: Path, made_from: dict[str, str]) -> Table | None:
    """The table of a shard that was made from this and whose checksums are all right; else None."""
    try:
        with safe_open(path, "numpy") as shard:
            if _made_from(shard.metadata()) != made_from:
                return None
            length, crc32, data = (shard.get_tensor(name) for name in ("length", "crc32", "data"))
    except (OSError, ValueError, SafetensorError, RecursionError):
        return None
    start = length.cumsum() - length
    content = memoryview(data)
    sums = [zlib.crc32(content[a : a + n]) for a, n in zip(start.tolist(), length.tolist(), strict=True)]
    if sums != crc32.tolist():
        return None
    return {"start": start + path.stat().st_size - len(data), "length": length, "crc32": crc32}


def _made_from(metadata: dict[str, str] | None) -> dict[str, str]:
    told = json.loads((metadata or {}).get("made_from", "{}"))
    if not isinstance(told, dict):
        raise ValueError("made_from")
    return told


@lru_cache(512)
def opened(path: str) -> FileIO:
    """Files stay open in each process, as many as leave room under the usual limit of 1,024."""
    return FileIO(path)


_seeking = threading.Lock()


def read_at(file: FileIO, length: int, start: int) -> bytes:
    """``length`` bytes from ``start`` on; fewer where the file ends.

    With `pread` the place is given with the call: the position in a file is shared with processes forked from this
    one. Windows has no `pread`, and no fork either: only threads share the position there.
    """
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), length, start)
    with _seeking:
        file.seek(start)
        return file.read(length)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"The prepared copy is damaged: {path}: {reason}. prepare=true mends it (what is intact is kept); "
        "data.prepared=false reads the image files instead."
    )
