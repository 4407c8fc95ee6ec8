"""Seeds that are a function of what they are for."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed from any mix of numbers and texts: the same on every machine, in every process.

    Args:
        parts: What the seed is for, as ``("held-out", 7)``. Order and types count: ``(1, 2)``, ``(12,)`` and
            ``("1", 2)`` give unrelated seeds.

    Returns:
        An integer in [0, 2³¹), which every generator in use accepts.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & 0x7FFF_FFFF
