"""What may be called by name. Hydra makes its launcher, sweeper, callbacks and log handlers from names in the
configuration, so a command line or a copied YAML file could name anything; only what is listed here passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlrun.config import PACKAGES_VARIABLE, allowed_packages
from mlrun.errors import mistake

# Under these keys Hydra, or Python's logging, calls what is named.
CALLED = ("_target_", "()", "class")
PLUGINS = ("hydra_plugins", "hydra._internal.core_plugins", "logging", "colorlog")


def foreign(hydra: DictConfig) -> list[str]:
    """Return a line for each name below `hydra` that belongs neither to a plugin nor to a package that is allowed."""
    # A plugin is installed by the user, and so trusted like a package; Hydra finds it by this prefix alone.
    allowed = [*PLUGINS, *allowed_packages()]
    remedy = f"add its package to the environment variable {PACKAGES_VARIABLE} if you trust it"
    return [
        mistake(key, name, ", ".join(allowed), remedy)
        for key, name in _called(OmegaConf.to_container(hydra, resolve=False), "hydra")
        if not any(str(name).startswith(f"{package}.") for package in allowed)
    ]


def _called(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in CALLED and isinstance(value, str):
            yield f"{path}.{key}", value
        yield from _called(value, f"{path}.{key}")
