"""What is published says nothing of the machine that it comes from: no folder above a name, and a digest for a host."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

# From an absolute path, or one of the home folder, all but its last name: a whole value, or one in a word of a command,
# may have blanks in it; in a sentence a path ends at the first.
_WHOLE = re.compile(r"(?:(?<=[=\[,'\"{])|^)(?:~[^/,'\"\]}]*)?/(?:[^,'\"\]}]*/)?(?=[^/])")
_INSIDE = re.compile(r"(?<=[\s(:])(?:~[^/\s]*)?/(?!/)(?:[^,'\"\]}\s]*/)?(?=[^/\s])")


def named(value: Any) -> Any:
    """Return a value of JSON where every path that says where it lies on this machine is its last name.

    Content is known by digests, and a run by its name; relative paths and addresses with a scheme stay.
    """
    if isinstance(value, str):
        return _INSIDE.sub("", _WHOLE.sub("", value.rstrip("/") if value.startswith(("/", "~")) else value))
    if isinstance(value, Mapping):
        return {named(key): named(one) for key, one in value.items()}
    return [named(one) for one in value] if isinstance(value, list | tuple) else value


def host(name: Any) -> str | None:
    """Return what tells a machine from others without naming it."""
    return None if name is None else hashlib.sha256(str(name).encode()).hexdigest()[:8]
