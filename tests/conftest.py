"""Tests run on the CPU, in float32 unless they say otherwise, with one thread: sizes are tiny.

Those marked `gpu` need an NVIDIA GPU and run by themselves, with `make gpu`: all others do not see one.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
import torch

torch.set_num_threads(1)
_before = pytest.StashKey[set[str]]()
_graphs = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs unless tests of them were asked for, and keep compiled graphs apart; started processes see both.

    A run that compiles says in the environment of its process where graphs lie, unless somebody has: one test would
    choose for those after it.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config.stash[_before] = _entries(config)
    config.stash[_graphs] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="mlrun-graphs-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the graphs."""
    shutil.rmtree(config.stash[_graphs], ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail when something was written where the tests were started: the next test would find it."""
    left = sorted(_entries(session.config) - session.config.stash[_before])
    if left and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line(f"\nFAILED: left in {os.getcwd()}: {', '.join(left)}", red=True)


def _entries(config: pytest.Config) -> set[str]:
    return {name for name in os.listdir(config.invocation_params.dir) if name[0] not in "._"}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more GPUs than there are."""
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    needed, seen = int(marker.kwargs.get("count", 1)), torch.cuda.device_count()
    if seen < needed:
        pytest.skip(f"needs {needed} NVIDIA GPU(s), {seen} seen: make gpu on a machine that has them")
