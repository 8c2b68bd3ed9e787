"""Measurements: `python -m benchmarks NAME`, with the names in `__main__`."""
