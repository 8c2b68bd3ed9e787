"""`init=FOLDER` completes a configuration: the folder's model where nobody chose another, and its tokenizer.

What the command line or an experiment says about the model stays, and must agree with the folder (see
`mlrun.interop.initial`, which judges). The folder's model is that of the first stage, so its sizes are level 1's only
in a cycle that begins there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from mlrun import files
from mlrun.config.load import conf_dir
from mlrun.errors import UserError, mistake


def completed(settings: DictConfig, overrides: Sequence[str], choice: str | None, run: Path) -> DictConfig:
    """Return the settings with what `init` brings; `choice` is the group file that the model came from.

    A run that has begun keeps what it began with, and the folder may be gone.

    Raises:
        UserError: the folder holds no model that we can read, or another tokenizer than the one given.
    """
    if settings.get("init") is None:
        return settings
    done = copy.deepcopy(settings)
    said = _said(settings, overrides, choice)
    with open_dict(done):
        began = _began_with(run, str(settings.init))
        if began is not None:
            model, tokenizer = began["model"], began["data"].get("tokenizer")
        else:
            model, tokenizer = _brought(done)
        if said is not None and model is not None:
            own = OmegaConf.to_container(done.model)
            assert isinstance(own, dict)
            done.model = {**model, **{key: own[key] for key in said if key in own}}
        if tokenizer is not None and isinstance(done.data, DictConfig) and done.data.get("tokenizer") is None:
            done.data.tokenizer = tokenizer
    return done


def _brought(settings: DictConfig) -> tuple[Mapping[str, Any] | None, str | None]:
    """Return the folder's model where it is that of level 1, and its tokenizer where the data is text."""
    from mlrun.interop import initial
    from mlrun.interop.tokenizers import UNREAD

    init = str(settings.init)
    found = initial.look(init)
    first = OmegaConf.select(settings, "cycle.stages[0].level")
    model = initial.settings_of(found) if first == 1 else None
    if not isinstance(settings.data, DictConfig) or "tokenizer" not in settings.data:
        return model, None
    given = settings.data.tokenizer
    if given is None and found.tokenizer is None:
        there = [name for name in UNREAD if (found.folder / name).is_file()]
        none = f"{there[0]} beside them cannot be read" if there else "no tokenizer lies beside them"
        remedy = f"{none}, and a new one would give their rows to other words"
        raise UserError(
            mistake("data.tokenizer", None, "the tokenizer that the weights in init were trained with", remedy)
        )
    if given is not None and (lines := initial.tokenizer_problems(init, str(given))):
        raise UserError(lines)
    return model, None if found.tokenizer is None else str(found.tokenizer)


def _began_with(run: Path, init: str) -> Mapping[str, Any] | None:
    """Return the configuration that a run from this folder has begun with, None where none has."""
    try:
        there = files.read_yaml(run / files.CONFIG)
        return there if there["init"] == init and there["model"]["_target_"] and there["data"]["_target_"] else None
    except (UserError, TypeError, KeyError):
        return None  # whose folder it is, and what is wrong with it, is judged elsewhere


def _said(settings: DictConfig, overrides: Sequence[str], choice: str | None) -> set[str] | None:
    """Return the keys of the model that somebody gave; None if the model itself was chosen.

    A choice other than the default was somebody's, as was a value other than that of the default's file.
    """
    keys = {text.lstrip("+~").partition("=")[0] for text in overrides}
    if "model" in keys or choice != _default():
        return None
    file = _file(conf_dir() / "model" / f"{choice}.yaml")
    changed = {str(key) for key, value in settings.model.items() if key not in file or file[key] != value}
    return changed | {key.removeprefix("model.") for key in keys if key.startswith("model.")}


def _file(path: Path) -> dict[str, Any]:
    """Return the values of a group's file, those of its bases among them."""
    own = yaml.safe_load(path.read_text())
    bases = [str(name).lstrip("/") for name in own.pop("defaults", []) if str(name) != "_self_"]
    below = {key: value for name in bases for key, value in _file(conf_dir() / f"{name}.yaml").items()}
    return below | own


def _default() -> str:
    """Return the model that config.yaml chooses."""
    listed = yaml.safe_load((conf_dir() / "config.yaml").read_text())["defaults"]
    return next(str(entry["model"]) for entry in listed if isinstance(entry, dict) and "model" in entry)
