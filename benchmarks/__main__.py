"""`python -m benchmarks NAME ...`, with the names below; without one, the first three."""

from __future__ import annotations

import importlib
import sys

NAMES = ("startup", "operators", "receipts", "streaming", "sharding", "coordinates", "predictions", "loss", "gpu")
QUICK = NAMES[:3]


def main(arguments: list[str]) -> int:
    """Print each report; 2 if a name is unknown."""
    unknown = [name for name in arguments if name not in NAMES]
    if unknown:
        print(f"benchmarks: {unknown[0]}: allowed: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in arguments or QUICK:
        print(f"## {name}\n\n{importlib.import_module(f'benchmarks.{name}').main()}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
