"""mlrun trains transformers with a multi-level V-cycle and measures what it saved.

From Python, as in a notebook (docs/python.md):

    from mlrun import coalesce, decoalesce, interpolate, plan, run, load, report

`plan`, `run` and `report` are packages and a module too: each may be called. What a name needs, torch for most of them,
is imported when it is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlrun.cli.python import plan, run
    from mlrun.interop.folders import load
    from mlrun.multilevel.operators import coalesce, decoalesce, interpolate
    from mlrun.report.build import build as report

__version__ = "0.1.0"
__all__ = ["coalesce", "decoalesce", "interpolate", "load", "plan", "report", "run"]

# Where each lives.
_HOMES = {
    "coalesce": ("mlrun.multilevel.operators", "coalesce"),
    "decoalesce": ("mlrun.multilevel.operators", "decoalesce"),
    "interpolate": ("mlrun.multilevel.operators", "interpolate"),
    "load": ("mlrun.interop.folders", "load"),
    "plan": ("mlrun.cli.python", "plan"),
    "report": ("mlrun.report.build", "build"),
    "run": ("mlrun.cli.python", "run"),
}


def _function(name: str) -> Any:
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __getattr__(name: str) -> Any:
    """Return a function that was not asked for before; those that are modules as well are found as such."""
    try:
        return import_module(f"mlrun.{name}") if name in ("plan", "report", "run") else _function(name)
    except KeyError:
        raise AttributeError(f"module 'mlrun' has no attribute {name!r}") from None


class _Callable(ModuleType):
    """A module of ours that does, when it is called, what the function of its name does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self.__name__.rpartition(".")[2])(*args, **kwargs)

    def __reduce__(self) -> Any:  # as any other module, by its name
        return import_module, (self.__name__,)


class _Package(ModuleType):
    """This package: it makes those of its modules callable that share their name with a function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
