"""The processor cores that are there for this process."""

from __future__ import annotations

import os


def usable() -> int:
    """Return how many cores this process may use; where the system does not tell (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
