"""`prepare=true`: make prepared copies (their format and their use: `prepared.py`).

Can be stopped or killed at any time. Started again it checks every shard that is there, keeps those that are what they
should be, and makes the rest.
"""

import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import save

from robustft.common.errors import UserError
from robustft.common.files import atomic, describe, disk_error, remove_partial
from robustft.common.locks import locked
from robustft.common.wording import counted, noun
from robustft.data.folders import ImageFiles
from robustft.data.loading import usable_cpus
from robustft.data.prepared import (
    JPEG,
    Table,
    copy_folder,
    fingerprint,
    index_path,
    opened,
    read_index,
    read_shard,
    recipe,
    shard_path,
    shards,
    source_digests,
)

log = logging.getLogger(__name__)


def prepare(sets: Mapping[str, ImageFiles], place: Path, lossy: Collection[str] = ()) -> None:
    """Make the copies of these sets that are missing, and what is missing, damaged or out of date of the others.

    Args:
        sets: by their names.
        place: the folder for the copies.
        lossy: names of sets that are kept in JPEG. Evaluation sets are always exact.

    Raises:
        UserError: an image cannot be read, the disk is too small or fails, or another process is at work there.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / "prepare", wait=False):
            opened.cache_clear()
            _make_all({name: (files, name in lossy) for name, files in sets.items()}, place)
    except BlockingIOError as error:
        raise UserError(f"{place}: another process is preparing data there. Wait for it, or stop it.") from error
    except OSError as error:
        number = disk_error(error)
        reason = describe(number, place) if number is not None else str(error)
        raise UserError(
            f"Cannot write to {place}: {reason}. Make room, or give another folder (data.prepared=DIR); the same "
            "command goes on: what is complete is kept."
        ) from error


def _make_all(sets: Mapping[str, tuple[ImageFiles, bool]], place: Path) -> None:
    folders = {name: copy_folder(name, files, place, jpeg) for name, (files, jpeg) in sets.items()}
    _check_space(sets, folders, place)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Threads: decoding, resizing and checksums all run outside of Python's lock, and the pixels stay where they are.
    with (
        Progress(*columns, disable=not get_console().is_terminal) as progress,
        ThreadPoolExecutor(usable_cpus()) as pool,
    ):
        tasks = {name: progress.add_task(f"Preparing {name}", total=len(files)) for name, (files, _) in sets.items()}
        for name, (files, jpeg) in sets.items():
            _make(files, folders[name], jpeg, pool, partial(progress.advance, tasks[name]))
    size = sum(path.stat().st_size for folder in folders.values() for path in folder.iterdir())
    images = sum(len(files) for files, _ in sets.values())
    what = f"{counted(images, 'image')} in {counted(len(sets), 'set')}"
    log.info("%s %s prepared: %.1f GB in %s", what, noun(images, "is", "are"), size / 1e9, place)


def _make(files: ImageFiles, folder: Path, jpeg: bool, pool: ThreadPoolExecutor, advance: Callable) -> None:
    folder.mkdir(exist_ok=True)
    how, sources = recipe(files, jpeg), source_digests(files)
    made_from = [{"files": digest, **how} for digest in sources]
    paths = [shard_path(folder, shard) for shard in range(len(sources))]
    tables: dict[int, Table] = {}
    for shard, table in enumerate(pool.map(read_shard, paths, made_from)):
        if table is not None:
            tables[shard] = table
            advance(len(table["length"]))
    if len(tables) == len(paths) and _is_index(folder, fingerprint(sources, how), _joined(tables)):
        return
    index_path(folder).unlink(missing_ok=True)
    remove_partial(folder)
    for leftover in {*folder.iterdir()}.difference(paths):
        leftover.unlink()
    encode = _jpeg if jpeg else _raw
    with ThreadPoolExecutor(1) as writer:  # a shard is written while the next one is decoded
        writing: dict[int, Future[Table]] = {}
        for shard, images in enumerate(shards(len(files))):
            if shard in tables:
                continue
            data = []
            for encoded in pool.map(partial(encode, files), images):
                data.append(encoded)
                advance(1)
            tables |= {before: future.result() for before, future in writing.items()}  # at most two in memory
            writing = {shard: writer.submit(_write_shard, paths[shard], data, made_from[shard])}
        tables |= {before: future.result() for before, future in writing.items()}
    _publish(index_path(folder), _joined(tables), fingerprint(sources, how))


def _raw(files: ImageFiles, index: int) -> np.ndarray:
    return files[index][0].numpy().ravel()


def _jpeg(files: ImageFiles, index: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(files[index][0].permute(1, 2, 0).numpy()).save(stream, "JPEG", **JPEG)
    return np.frombuffer(stream.getvalue(), np.uint8)


def _write_shard(path: Path, data: list[np.ndarray], made_from: dict[str, str]) -> Table:
    length, crc32 = np.array([len(image) for image in data]), _checksums(data)
    _publish(path, {"length": length, "crc32": crc32, "data": np.concatenate(data)}, made_from)
    table = read_shard(path, made_from)
    if table is None:
        raise UserError(f"{path} does not read back as it was written: the disk or the memory is faulty.")
    return table


def _publish(path: Path, tensors: dict[str, np.ndarray], made_from: dict[str, str]) -> None:
    """Under its name when it is complete and on the disk."""
    with atomic(path) as partial_path, open(partial_path, "wb") as file:
        file.write(save(tensors, {"made_from": json.dumps(made_from)}))
        file.flush()
        os.fsync(file.fileno())


def _checksums(data: list[np.ndarray]) -> np.ndarray:
    return np.array([zlib.crc32(image.data) for image in data], np.uint32)


def _joined(tables: dict[int, Table]) -> Table:
    """The table of all images from those of the shards."""
    in_order = [tables[shard] for shard in sorted(tables)]
    return {name: np.concatenate([table[name] for table in in_order]) for name in ("start", "length", "crc32")}


def _is_index(folder: Path, made_from: dict[str, str], table: Table) -> bool:
    known = read_index(folder)
    if known is None or known[0] != made_from:
        return False
    return all(np.array_equal(known[1][name], values) for name, values in table.items())


def _check_space(sets: Mapping[str, tuple[ImageFiles, bool]], folders: Mapping[str, Path], place: Path) -> None:
    """Before hours of work. In JPEG, photographs take a fifth to a third of their pixels."""
    needed = 0
    for name, (files, jpeg) in sets.items():
        pixels = 3 * files.preprocess.size**2 * len(files)
        there = sum(path.stat().st_size for path in folders[name].glob("shard-*.safetensors"))
        needed += max(0, pixels // (3 if jpeg else 1) - there)
    if needed > (free := shutil.disk_usage(place).free):
        raise UserError(
            f"{place}: {free / 1e9:.1f} GB are free, the prepared copy takes {needed / 1e9:.1f} GB more. Give a folder "
            "on another disk (data.prepared=DIR), leave sets out (data.sets.<name>=false), or keep the training images "
            "as JPEG (data.lossy=true)."
        )
