"""Random numbers without state: each is a function of a seed and a position, whatever else is in the batch.

The hash is SplitMix64's finaliser (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"),
computed in int64, where multiplication wraps around as modulo 2^64 asks. The seed is hashed before the position is
added, so that neighbouring seeds do not give shifted copies of one stream:

    h(z)      = f3(f2(f1(z)))           f1: z ^= z >> 30, z *= C1;  f2: z ^= z >> 27, z *= C2;  f3: z ^= z >> 31
    u(s, t)   = (h(h(s) + (t + 1)·φ mod 2^64) >> 40) / 2^24
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 1 << 64
_PHI = 0x9E3779B97F4A7C15
_C1 = 0xBF58476D1CE4E5B9
_C2 = 0x94D049BB133111EB


def uniforms(seeds: Tensor, position: int | Tensor) -> Tensor:
    """One uniform number a seed at a position.

    Args:
        seeds: (B,) int64, or any shape that broadcasts with ``position``.
        position: Token position, from 0; a tensor gives many positions at once (``(T,)`` against ``(B, 1)``).

    Returns:
        float32 in [0, 1), multiples of 2^-24, of the broadcast shape.
    """
    counter = (torch.as_tensor(position, device=seeds.device) + 1) * _signed(_PHI)
    return _shift(_hash(_hash(seeds) + counter), 40).to(torch.float32) * 2.0**-24


def mix(*integers: int) -> int:
    """One int64 seed of several integers, in this order: ``h_i = h(h_{i-1} + x_i + φ mod 2^64)``, ``h_0 = 0``.

    Args:
        integers: Such as run seed, rollout index, prompt index, sample index; of any size (taken modulo 2^64).
    """
    state = 0
    for integer in integers:
        state = (state + integer + _PHI) % _WORD
        state = (state ^ (state >> 30)) * _C1 % _WORD
        state = (state ^ (state >> 27)) * _C2 % _WORD
        state ^= state >> 31
    return _signed(state)


def _hash(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_C1)
    z = (z ^ _shift(z, 27)) * _signed(_C2)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift right (torch's is arithmetic)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word
