"""Randomness as a function: draws that depend on (seed, epoch, id) and on nothing else.

A counter-based generator (SplitMix64, Steele et al. 2014) instead of generator objects: vectorised
over samples, the same on every platform and library version, and a resumed run needs no state.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _scramble(value: Keys) -> Keys:
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


def sample_keys(ids: NDArray[np.int64], *, seed: int = 0, epoch: int = 0, stream: str = "") -> Keys:
    """One 64-bit key (N,) per id; different streams give unrelated keys for the same ids."""
    words = hashlib.blake2b(f"{stream}|{seed}|{epoch}".encode(), digest_size=8).digest()
    base = np.uint64(int.from_bytes(words, "little"))
    return _scramble(_scramble(np.asarray(ids).astype(np.uint64) * _GOLDEN + base) + _GOLDEN)


def uniforms(keys: Keys, count: int) -> NDArray[np.float64]:
    """Draws (N, count) from [0, 1), independent over samples and columns."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _scramble(keys[:, None] + steps[None, :]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def shuffled(
    ids: NDArray[np.int64], *, seed: int = 0, epoch: int = 0, stream: str = ""
) -> NDArray[np.int64]:
    """A permutation (N,) of positions, ordered by the ids' keys."""
    keys = sample_keys(ids, seed=seed, epoch=epoch, stream=stream)
    return np.argsort(keys, kind="stable").astype(np.int64)


def seed_globals(key: int) -> None:
    """Seed Python's, numpy's and torch's CPU generators, which library transforms draw from.

    Not ``torch.manual_seed``: that reseeds the accelerators too, and dropout there with them.
    """
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key >> 1)


@contextmanager
def preserved_globals() -> Iterator[None]:
    """Put the three global generators back as they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
