"""One number out of a name: what is drawn depends on what it is for, not on the order of drawing. No torch here."""

from __future__ import annotations

import hashlib

# A seed is below this: every generator takes seven bytes.
SEEDS = 2**56


def seed_of(*names: object) -> int:
    """Return a seed from 0 to SEEDS - 1 for a path of names: seven bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:7], "big")
