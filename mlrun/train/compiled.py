"""The code that torch compiles, a graph for each level and shape: made once, and kept while the run is elsewhere.

Shapes are static: with what torch calls dynamic ones a graph would depend on what was compiled before it, so that a run
that stops and goes on would not be the run that did not. `torch.compile` keeps its graphs in the process, on the disk
those of its backend.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import TypeVar

import torch

from mlrun.files import expanded

Code = TypeVar("Code")
# A module's code has at most so many graphs, torch's own limit; beyond that what is new would run as it is written.
MOST = 8
FOLDER, VARIABLE = "compiled", "TORCHINDUCTOR_CACHE_DIR"

_begun: dict[Hashable, int] = {}


def keep_in(cache: str) -> None:
    """Let the graphs on disk lie in the cache folder, where a restart finds them, unless the user has said where.

    torch writes its own default, a folder for temporary files, into the variable as soon as parts of it are loaded.
    """
    said = Path(os.environ.get(VARIABLE, ""))
    if VARIABLE not in os.environ or (said.parent, said.name[:14]) == (Path(tempfile.gettempdir()), "torchinductor_"):
        os.environ[VARIABLE] = str(expanded(cache).absolute() / FOLDER)


def begin(stage: Hashable, graphs: int) -> None:
    """Make room for the graphs of a stage, known by all that they depend on; of one that was here they are kept.

    Graphs belong to the process, as this does: several runs in it share them.
    """
    if stage not in _begun and sum(_begun.values()) + graphs > MOST:
        forget()
    _begun[stage] = graphs


def forget() -> None:
    """Drop all graphs of the process."""
    torch.compiler.reset()
    _begun.clear()


def code(module: Code) -> Code:
    """Return a module or a function that is compiled when it is called."""
    return torch.compile(module, dynamic=False)  # type: ignore[call-overload]
