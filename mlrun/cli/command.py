"""The words of a command line: flags, overrides, paths with odd characters, and the user's own YAML files."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, cast

from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import CompletionPlugin

from mlrun import __version__
from mlrun.cli import guess
from mlrun.config.load import conf_dir
from mlrun.config.settings import reason
from mlrun.errors import UserError, mistake
from mlrun.files import expanded

# A path or a text in these may hold commas, blanks and equal signs, as the folders of a sweep do.
PATHS = (
    *("run", "runs", "results", "init", "source", "target", "grown", "fine"),
    *("sample.prompt", "sample.image", "sample.file"),
)


@dataclass(frozen=True)
class Command:
    """A command line: `overrides` with the search path of the user's own YAML files, and the `rest`, its flags.

    `subjects` are the groups and keys that `--help` is asked about.
    """

    flags: argparse.Namespace
    overrides: tuple[str, ...]
    rest: tuple[str, ...]
    subjects: tuple[str, ...] = ()

    @property
    def informs(self) -> bool:
        """True if Hydra only prints: help, the config, completion."""
        return self.helps or self.flags.cfg is not None or self.flags.info is not None

    @property
    def helps(self) -> bool:
        """True if Hydra only prints, whatever the overrides are."""
        return bool(self.flags.help or self.flags.hydra_help or self.flags.shell_completion)


def read(argv: Sequence[str]) -> Command:
    """Return the command line; UserError for what Hydra cannot parse."""
    arguments = [_quoted(_utf8(argument)) for argument in argv]
    flags = _parser().parse_intermixed_args(arguments)
    subjects = tuple(word for word in flags.overrides if flags.help and not set(word) & set("=+~"))
    if subjects:
        said = (o for o in flags.overrides if o not in subjects)
        return Command(flags, (*said, *_search_path(flags)), (), subjects)
    if flags.help or flags.hydra_help:  # which are the same whatever else is asked for
        return Command(flags, tuple(_search_path(flags)), ("--help" if flags.help else "--hydra-help",))
    _judge(flags)
    rest = tuple(_at_home(flags, argument) for argument in arguments if argument not in flags.overrides)
    return Command(flags, (*flags.overrides, *_search_path(flags), *_naming(flags)), rest)


def parsed(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Return the overrides; the loader knows what a glob() stands for."""
    parser, found, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            found.append(parser.parse_override(text))
            found[-1].config_loader = loader
        except HydraException as error:
            meant = guess.word(text) if "=" not in text else ""
            remedy = meant or f"{reason(error)}: quote values with special characters"
            problems.append(f"{text or repr('')}: allowed: KEY=VALUE; {remedy}")
    if problems:
        raise UserError(problems)
    return found


def override(key: str, path: Path | str) -> str:
    """Return the override that sets a path."""
    return f"{key}={quoted(str(path))}"


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar takes it whole."""
    return QuotedString(text, Quote.single).with_quotes()


def unquoted(text: str) -> str:
    """Return an override of a path without the quotes that `read` put around it, where it needs none."""
    found = re.fullmatch(r"([\w.]+)='([\w./~+-]+)'", text)
    return f"{found[1]}={found[2]}" if found and found[1] in PATHS and found[2] != "null" else text


def _parser() -> argparse.ArgumentParser:
    """Return Hydra's parser with our version, and our way to complain."""
    parser = argparse.ArgumentParser(parents=[get_args_parser()], add_help=False, conflict_handler="resolve")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "hydra-core"))
    shown = f"mlrun {__version__} ({libraries}, Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=shown)
    parser.error = _refuse  # type: ignore[method-assign]
    return parser


def _judge(flags: argparse.Namespace) -> None:
    """Raise UserError for flags that we do not take, or that would be noticed only once a run has begun."""
    if flags.config_name is not None or flags.config_path is not None:
        _refuse("--config-name and --config-path: allowed: --config-dir FOLDER, which adds to the files of mlrun")
    if flags.experimental_rerun is not None:
        _refuse("--experimental-rerun: allowed: run=FOLDER, which goes on with a run; a pickle is never read")
    modes = {"--run": flags.run, "-m": flags.multirun, "--cfg": flags.cfg, "--info": flags.info}
    modes["--shell-completion"] = flags.shell_completion
    if len(given := [name for name, value in modes.items() if value]) > 1:
        _refuse(f"{' '.join(given)}: allowed: one of them at a time")
    if flags.shell_completion and list(flags.overrides) not in [[known] for known in _completions()]:
        _refuse(f"{' '.join(['-sc', *flags.overrides])}: allowed: one of {', '.join(_completions())}")
    if flags.cfg is None and (flags.package is not None or flags.resolve):
        _refuse("--package and --resolve: allowed: beside --cfg")


def _completions() -> list[str]:
    """Return what can be asked of the completion of a shell."""
    found = Plugins.instance().discover(CompletionPlugin)
    shells = sorted(cast(type[CompletionPlugin], plugin).provides() for plugin in found)
    return [f"{what}={shell}" for what in ("install", "uninstall", "query") for shell in shells]


def _refuse(message: str) -> NoReturn:
    flags = message.removeprefix("unrecognized arguments: ")
    meant = [line for flag in flags.split() if (line := guess.flag(flag))] if flags != message else []
    raise UserError("; ".join([message, *dict.fromkeys(meant), "mlrun --hydra-help lists the flags"]))


def _utf8(argument: str) -> str:
    """Return an argument; UserError if it is no text, such as the name of a file in an old encoding."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = argument.encode(errors="backslashreplace").decode()
        raise UserError(f"{shown}: allowed: text in UTF-8; rename the file or folder") from None
    return argument


def _quoted(argument: str) -> str:
    """Return a path as a quoted string, anything else as it is."""
    key, _, value = argument.partition("=")
    if key not in PATHS or value in ("", "null", "???") or value[0] in "'\"" or "${" in value:
        return argument
    return argument if key == "init" and _sweeps(value) else override(key, value)


def _sweeps(value: str) -> bool:
    """Return whether several models to begin with are meant: `a/model,b/model` and no path that holds a comma."""
    return any(c in value for c in ",(") and "=" not in value and not os.path.exists(value)


def _at_home(flags: argparse.Namespace, word: str) -> str:
    """Return a word of the flags, with the home that the `~` of --config-dir=~/FOLDER stands for: no shell reads it."""
    given = flags.config_dir
    if given is None or not given.startswith("~") or not word.endswith(given):
        return word
    return f"{word.removesuffix(given)}{expanded(given)}"


def _search_path(flags: argparse.Namespace) -> list[str]:
    """Return the override that adds the user's folders of YAML files: --config-dir and ./conf."""
    folders = [Path("conf")] if Path("conf").is_dir() else []
    if flags.config_dir is not None:
        folders.insert(0, expanded(flags.config_dir))
        if not os.path.isdir(folders[0]):
            raise UserError(mistake("--config-dir", flags.config_dir, "an existing folder", "correct the path"))
    folders = [folder.resolve() for folder in folders if folder.resolve() != conf_dir()]
    if not folders or any(o.startswith("hydra.searchpath=") for o in flags.overrides):
        return []
    if hidden := [line for folder in folders for line in _hidden(folder)]:
        raise UserError(hidden)
    paths = ",".join(quoted(f"file://{folder}") for folder in folders)
    return [f"hydra.searchpath=[{paths}]"]


def _hidden(folder: Path) -> list[str]:
    """Return a line for each file that Hydra would not read: one of ours has its name, or its name ends otherwise."""
    ours, depths = conf_dir(), ("*", "*/*", "*/*/*")
    names = (path.relative_to(folder) for depth in depths for path in sorted(folder.glob(f"{depth}.yaml")))
    hidden = [
        mistake(str(folder / name), "hidden", "a name that mlrun does not use", "rename the file")
        for name in names
        if (ours / name).is_file() and (ours / name).read_bytes() != (folder / name).read_bytes()
    ]
    other = (path for depth in depths[1:] for path in sorted(folder.glob(f"{depth}.yml")))
    return hidden + [mistake(str(path), "not read", "a name that ends in .yaml", "rename the file") for path in other]


def _naming(flags: argparse.Namespace) -> list[str]:
    """Return the override that names the folders of a sweep by what it varies, and by nothing that all runs share.

    Also without -m: `hardware=slurm` makes a sweep of a single run.
    """
    shared = sorted({o.key_or_group for o in parsed(flags.overrides) if not o.is_sweep_override()} | {"run", "task"})
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, shared))}]"]
