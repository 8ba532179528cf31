"""Random numbers that are a pure function of their key, on any device and in any process.

A generator has a position: to make its thousandth number again, the other 999 are drawn first.
Here every number is the hash of what it is for, such as (seed, "view", epoch, sample), so any
one can be made again alone and in any order, and the global generators are neither read nor
moved. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators"), which needs nothing but wrapping 64-bit integer arithmetic; its
results do not depend on the version of a library.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _finalise(z: int) -> int:
    z = ((z ^ (z >> 30)) * _M1) & _MASK
    z = ((z ^ (z >> 27)) * _M2) & _MASK
    return z ^ (z >> 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own copies the sign bit down."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _finalise_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_M1)
    z = (z ^ _shift(z, 27)) * _signed(_M2)
    return z ^ _shift(z, 31)


def derive(*parts: int | str) -> int:
    """A 64-bit key (0 … 2⁶⁴-1) from whole numbers and names; the order of the parts matters."""
    key = 0
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        key = _finalise(((key ^ (number & _MASK)) + _GOLDEN) & _MASK)
    return key


def hashes(key: int, index: Tensor) -> Tensor:
    """Uniform int64 numbers in 0 … 2⁶³-1, one for each element of the int64 tensor `index`.

    Different indices under one key give different hashes before the top bit is dropped, so
    sorting by them is a permutation drawn from the key.
    """
    z = (index ^ _signed(key)) + _signed(_GOLDEN)
    return _shift(_finalise_tensor(z), 1)


def integers(key: int, index: Tensor, n: int | Tensor) -> Tensor:
    """Uniform int64 numbers in 0 … n-1, one for each element of `index`."""
    return hashes(key, index).remainder_(n)


def permutation(key: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The numbers 0 … n-1 in an order drawn from the key (int64, shape (n,))."""
    return torch.argsort(hashes(key, torch.arange(n, device=device)), stable=True)
