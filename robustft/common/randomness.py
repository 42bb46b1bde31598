"""Random streams: each is named after what it is for, and depends on its whole key."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def number(purpose: str, *keys: int) -> int:
    """Make 63 bits (as many as torch takes) of a purpose and whole numbers."""
    digest = hashlib.blake2b(repr((purpose, *map(int, keys))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(purpose: str, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a random generator that depends on what it is for and on every key: ``generator("order", seed, epoch)``.

    Other purposes, other keys and other numbers of keys give streams that have nothing to do with each other; also
    (seed) and (seed, 0), which are one and the same for ``np.random.SeedSequence``.
    """
    return torch.Generator(device).manual_seed(number(purpose, *keys))


@contextmanager
def seeded(purpose: str, *keys: int) -> Iterator[None]:
    """Let torch's own generator of the CPU be such a stream, for what takes no other; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number(purpose, *keys))
        yield
