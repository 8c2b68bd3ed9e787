"""What may be called by name. Hydra makes its launcher, sweeper, callbacks and log handlers from names in the
configuration, so a command line or a copied YAML file could name anything; only what is listed here passes.

A name says nothing by itself: `mlrun.files.os.system` begins with a package of ours. It is the thing found under it
that is judged, and it must be a class of a kind that Hydra or Python's logging makes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, ListConfig, OmegaConf

from mlrun.config.choices import PACKAGES_VARIABLE, allowed_packages, found_class, within
from mlrun.config.load import REFERENCE_ERRORS
from mlrun.errors import UserError, mistake

# Under these keys Hydra, or Python's logging, calls what is named.
CALLED = ("_target_", "()", "class")
# A plugin is installed by the user, and so trusted like a package; Hydra finds it by this prefix alone.
PLUGINS = ("hydra_plugins", "hydra._internal.core_plugins", "logging", "colorlog")
KINDS = (Launcher, Sweeper, Callback, logging.Handler, logging.Formatter, logging.Filter)


def foreign(hydra: DictConfig) -> list[str]:
    """Return a line for each name below `hydra` that does not lead to a class that may be made."""
    return [line for key, name in _called(hydra, "hydra") if (line := _problem(key, name)) is not None]


def _problem(key: str, name: str) -> str | None:
    """Return what is wrong with a name; whatever the user's own packages define passes."""
    allowed = [*PLUGINS, *allowed_packages()]
    try:
        found = found_class(name, key, allowed)
    except UserError as error:
        return str(error)
    if issubclass(found, KINDS) or within(found.__module__, allowed_packages()[1:]):
        return None
    kinds = ", ".join(kind.__name__ for kind in KINDS)
    remedy = f"add its package to the environment variable {PACKAGES_VARIABLE} if you trust it"
    return mistake(key, name, f"a class of one of the kinds {kinds}", remedy)


def _called(node: DictConfig | ListConfig, path: str) -> Iterator[tuple[str, str]]:
    """Yield every key that names what is called, and the name as it is written; references are followed."""
    keys: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except REFERENCE_ERRORS:
            continue  # where Hydra needs it, Hydra fails as well
        if isinstance(value, DictConfig | ListConfig):
            yield from _called(value, f"{path}.{key}")
        elif key in CALLED and isinstance(value, str):
            yield f"{path}.{key}", "${...}" if OmegaConf.is_interpolation(node, key) else value
