"""The memory of a process of its own."""

from __future__ import annotations

import resource
import sys

# macOS counts in bytes, Linux in KiB.
UNIT = 1 if sys.platform == "darwin" else 1024


def peak() -> int:
    """Return this process's largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
