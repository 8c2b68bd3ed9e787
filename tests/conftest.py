"""Tests run on the CPU, in float32 unless they say otherwise, with one thread: sizes are tiny.

Those marked `gpu` need an NVIDIA GPU and run by themselves, with `make gpu`: all others do not see one.
"""

from __future__ import annotations

import os

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, from the processes that tests start too, unless tests of them were asked for."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more GPUs than there are."""
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    needed, seen = int(marker.kwargs.get("count", 1)), torch.cuda.device_count()
    if seen < needed:
        pytest.skip(f"needs {needed} NVIDIA GPU(s), {seen} seen: make gpu on a machine that has them")
