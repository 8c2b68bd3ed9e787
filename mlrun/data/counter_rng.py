"""Random numbers as a pure function of (key, counter): any sample can be drawn at any time, in any order.

No generator is carried along, so resuming at a cursor, or asking for another batch size, changes nothing.
The hash is the output function of SplitMix64 (Steele et al., "Fast splittable pseudorandom number
generators", OOPSLA 2014), a bijection of 64 bits. Shapes: B samples, W numbers per sample.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 6  # Luby and Rackoff need 4 for a pseudo-random permutation; more are cheap


def _mix(z: np.ndarray) -> np.ndarray:
    """Hash uint64 to uint64, element by element; arithmetic is modulo 2**64 on purpose."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def key(*parts: int) -> np.ndarray:
    """Return one uint64 (as a 1-element array) that stands for these non-negative integers."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix((state ^ np.uint64(part)) + _GOLDEN)
    return state


def bits(key_: np.ndarray, index_B: np.ndarray, width: int) -> np.ndarray:
    """Return (B, W) uint64 random numbers that depend on the key, the sample's index and the column only."""
    row_B1 = _mix((index_B.astype(np.uint64)[:, None] ^ key_) + _GOLDEN)
    column_W = np.arange(1, width + 1, dtype=np.uint64)
    return _mix(row_B1 + column_W * _GOLDEN)


def uniform(key_: np.ndarray, index_B: np.ndarray, width: int) -> np.ndarray:
    """Return (B, W) float64 random numbers in [0, 1)."""
    return (bits(key_, index_B, width) >> np.uint64(11)) * 2.0**-53


def permute(index_B: np.ndarray, size: int, *parts: int) -> np.ndarray:
    """Return where a pseudo-random permutation of range(size), chosen by `parts`, sends each index.

    A Feistel network on the smallest even number of bits that holds `size`, walked until the value falls
    inside: a bijection with random access in O(1) memory (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002). The domain is under four times the size, so few steps are needed.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    value_B = index_B.astype(np.uint64)
    outside_B = np.ones(len(value_B), bool)
    while outside_B.any():
        value_B[outside_B] = _feistel(value_B[outside_B], half, parts)
        outside_B = value_B >= size
    return value_B.astype(np.int64)


def epoch_order(index_B: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return which of `size` items each sample is: every epoch visits all of them, in an order of its own."""
    epoch_B, within_B = np.divmod(index_B, size)
    item_B = np.empty_like(index_B)
    for epoch in np.unique(epoch_B):
        here = epoch_B == epoch
        item_B[here] = permute(within_B[here], size, seed, int(epoch))
    return item_B


def _feistel(value_B: np.ndarray, half: int, parts: tuple[int, ...]) -> np.ndarray:
    """Encrypt values of 2 * half bits, once."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left_B, right_B = value_B >> shift, value_B & mask
    for number in range(_ROUNDS):
        mixed_B = _mix((right_B ^ key(*parts, number)) + _GOLDEN) & mask
        left_B, right_B = right_B, left_B ^ mixed_B
    return (left_B << shift) | right_B
