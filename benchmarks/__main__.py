"""`python -m benchmarks NAME ... KEY=VALUE ...`, with the names below; without one, the first three.

Keys are those of `main` in the modules of the names, which take text.
"""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "startup", "operators", "receipts", "streaming", "sharding", "coordinates", "predictions", "loss", "gpu", "images",
    "text",
)  # fmt: skip
QUICK = NAMES[:3]


def main(arguments: list[str]) -> int:
    """Print each report; 2 if a name is unknown."""
    names = [word for word in arguments if "=" not in word]
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"benchmarks: {unknown[0]}: allowed: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names or QUICK:
        print(f"## {name}\n\n{importlib.import_module(f'benchmarks.{name}').main(**given)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
