"""Who is to blame when a command line does not compose: one line for each override that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlrun.config.settings import LISTS, reason
from mlrun.errors import mistake, nearest

# Errors that say by themselves what is wrong. Composing may raise others too, from KeyError to OverflowError, and runs
# no code of ours: whatever it raises, an override is the reason.
ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


# Groups without a section of their own among the settings: their files change those of others.
PACKAGELESS = ("experiment", "method")
# What Hydra says of a file with a key that the settings have not.
_IN_FILE = re.compile(r"In '([^']+)': ConfigKeyError .*Key '([^']+)' not in 'Settings'")


def blame(load: Callable[[list[str]], DictConfig], overrides: list[str], error: Exception) -> list[str]:
    """Return a line for each override that does not compose with the good ones before it.

    Where files are found comes first, then which are chosen, then values.
    """
    good: list[str] = []
    try:
        base = load(good)
    except Exception as own:
        return [_explain(own, None, None)]
    lines = []
    in_order = sorted(overrides, key=lambda o: (not o.startswith("hydra.searchpath"), "." in o.partition("=")[0]))
    for text in in_order:
        try:
            base = load([*good, text])
            good.append(text)
        except Exception as own:
            lines.append(_explain(own, text, base))
    return lines or [_explain(error, None, None)]


def line(error: Exception) -> str:
    """Return the reason of an error on one line; some give it after a colon on the next, YAML's on several."""
    lines = [text.strip() for text in str(error).strip().splitlines()] or [""]
    if isinstance(error, yaml.YAMLError):
        return " ".join(lines)
    told = " ".join(lines[:2]) if lines[0].endswith(":") else reason(error)
    return told if told and isinstance(error, ERRORS) else f"{type(error).__name__} {told}".rstrip()


def _explain(error: Exception, text: str | None, base: DictConfig | None) -> str:
    """Return one line about an error of Hydra or OmegaConf; `base` is what the override `text` should change."""
    of_a_list = text is not None and "=[" in text  # of which Hydra names no options
    if isinstance(error, MissingConfigException) and (error.options is not None or of_a_list):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = error.options or GlobalHydra.instance().config_loader().get_group_options(group)
        return mistake(group, name, ", ".join(options), f"choose one{nearest(name, options)}")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if text is None or base is None:
        return line(cause)
    key = text.partition("=")[0]
    plain = OmegaConf.to_container(base)
    known = _known(plain, key.lstrip("+~"))
    if known is not None and not key.startswith("+"):
        return f"{text}: allowed: {', '.join(known) or 'nothing'}; {_correct(plain, key, known)}"
    empty = _null(plain, key.lstrip("+~"))
    if empty and (empty != key.lstrip("+~") or not isinstance(cause, ERRORS)):
        return f"{text}: allowed: nothing below {empty}, which is null here; choose what gives it, or leave this out"
    if key.startswith("+") and "An item is already at" in line(cause):
        return f"{text}: allowed: {text.lstrip('+')}; it is there already, so that nothing is added: leave out the +"
    found = _IN_FILE.match(line(cause))
    return _misplaced(text, found[1], found[2], plain) if found and "@" not in key else _plainly(text, cause)


def _plainly(text: str, cause: Exception) -> str:
    return f"{text}: allowed: {line(cause)}; correct the value"


def _misplaced(text: str, file: str, name: str, base: Any) -> str:
    """Return what is wrong with a chosen file that gives `name`, which the settings have not."""
    if name == file.partition("/")[0]:
        return f"{text}: allowed: a file of keys that begins with # @package _global_; write that line into {file}.yaml"
    known = _known(base, name) or []
    return f"{text}: {name}: allowed: {', '.join(known)}; correct the key in {file}.yaml{nearest(name, known)}"


def _correct(base: Any, key: str, known: list[str]) -> str:
    """Return what to do about a key that is not there: a choice that is not in its list, or one that is misspelt."""
    group, _, name = key.partition(".")
    name = name.partition(".")[0]
    loader = GlobalHydra.instance().config_loader()
    if group in LISTS and name not in base[group] and name in loader.get_group_options(group):
        return f"{group}={name} gives it, or {name} in the list {group}=[...]"
    if not known and group not in LISTS:
        return f"nothing stands there yet: +{key}=... adds it"
    return f"correct the key{nearest(key.rpartition('.')[2], known)}"


def _null(base: Any, key: str) -> str:
    """Return the part of a key that is null, so that nothing can be set below it; '' if there is none."""
    node, path = base, []
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return ""
        node = node[part]
        path.append(part)
        if node is None:
            return ".".join(path)
    return ""


def _known(base: Any, key: str) -> list[str] | None:
    """Return the keys that exist where the first unknown part of `key` stands; None if all parts are known."""
    if "/" in key or key in PACKAGELESS:
        return None  # a group of Hydra's, or one whose files say where their keys belong
    node = base
    for part in key.split("."):
        below = dict(enumerate(node)) if isinstance(node, list) else node
        if not isinstance(below, dict):
            return None  # nothing stands below it
        named = {str(name): value for name, value in below.items()}
        if part not in named:
            return sorted({*named, *(PACKAGELESS if node is base else ())} - {"hydra"})
        node = named[part]
    return None
