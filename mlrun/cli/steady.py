"""Which sections of settings stay as they are when others change: made plain once for all points of a sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlrun.config.load import REFERENCE_ERRORS, section

# A reference to a key, seen from the top or, with one point before it, from where it stands.
_PLAIN = re.compile(r"\$\{(\.?)(\w+)(?:\.\w+)*\}")


@dataclass(frozen=True)
class Steady:
    """A section in plain form, and the sections that it follows from, itself among them."""

    needs: frozenset[str]
    value: Any


def sections(settings: DictConfig) -> dict[str, Steady]:
    """Return what can be known of settings section by section; whatever a resolver has a word in cannot."""
    written = OmegaConf.to_container(settings)
    assert isinstance(written, dict)
    read = {str(key): _read(str(key), part) for key, part in written.items()}
    found = {}
    for key in read:
        needs = _followed(key, read)
        if needs is None:
            continue
        try:
            found[key] = Steady(needs, section(settings, key))
        except REFERENCE_ERRORS:
            continue  # told where the point is planned
    return found


def untouched(steady: Mapping[str, Steady], touched: frozenset[str]) -> dict[str, Any]:
    """Return the plain sections that do not follow from the touched ones."""
    return {key: one.value for key, one in steady.items() if not one.needs & touched}


def _read(key: str, part: Any) -> frozenset[str] | None:
    """Return the sections that a section refers to; None where only OmegaConf knows."""
    text = repr(part)
    found = _PLAIN.findall(text)
    relative = any(point for point, _ in found)
    if len(found) != text.count("${") or (relative and not isinstance(part, dict)):
        return None
    return frozenset(key if point else name for point, name in found)


def _followed(key: str, read: Mapping[str, frozenset[str] | None]) -> frozenset[str] | None:
    """Return a section, with all that it refers to and what these refer to."""
    found, new = frozenset[str](), frozenset([key])
    while new:
        found |= new
        further = [read.get(name) for name in new]
        if None in further:
            return None
        new = frozenset[str]().union(*(names for names in further if names is not None)) - found
    return found
