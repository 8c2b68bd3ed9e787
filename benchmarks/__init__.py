"""Measurements of the operators: `python -m benchmarks operators | receipts | streaming`."""
