"""The command line becomes configurations, and Hydra's complaints become lines. Nothing is written here.

Hydra itself composes once more when it runs: by then every point of a sweep is known to compose.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mlrun import __version__
from mlrun.cli import trust
from mlrun.config import REFERENCE_ERRORS, Settings, conf_dir, reason, unresolved
from mlrun.errors import UserError, mistake, nearest

CONFIG = "config"
# Errors that say by themselves what is wrong. Composing may raise others too, from KeyError to OverflowError, and runs
# no code of ours: whatever it raises, an override is the reason.
ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
# A path in these may hold commas, blanks and equal signs; they are never swept over.
PATHS = ("run", "runs")
SHELLS = ("bash", "fish", "zsh")
# More runs than this in one sweep are taken for a slip of the pen.
MOST_RUNS = 10_000
BASIC = "hydra._internal.core_plugins."
LOCAL = "hydra_plugins.mlrun_launchers.local."

ConfigStore.instance().store(name="settings", node=Settings)


def safe_name(text: str) -> str:
    """Return a text as one name that every file system takes, with at most 150 characters."""
    kept = "".join(c if c.isalnum() or c in "-=,._" else "_" for c in text)
    return kept[:150] or "run"


# Also run wherever a launcher unpickles a job, which resolves the job's folder there.
OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)


@dataclass(frozen=True)
class Command:
    """A command line: `overrides` with the search path of the user's own YAML files, and the `rest`, its flags."""

    flags: argparse.Namespace
    overrides: tuple[str, ...]
    rest: tuple[str, ...]

    @property
    def informs(self) -> bool:
        """True if Hydra only prints: help, the config, completion."""
        return self.helps or self.flags.cfg is not None or self.flags.info is not None

    @property
    def helps(self) -> bool:
        """True if Hydra only prints, whatever the overrides are."""
        return bool(self.flags.help or self.flags.hydra_help or self.flags.shell_completion)


@dataclass(frozen=True)
class Point:
    """One configuration that a command line asks for; `label` says what sets it apart in a sweep."""

    settings: DictConfig
    folder: Path
    label: str
    own_run: bool  # False if the folder is the default, named by the clock
    launcher: DictConfig | None = None  # Hydra's, of a sweep
    overrides: tuple[str, ...] = ()  # what the command line said, but for Hydra's own
    model: str | None = None  # the chosen file of the group

    @property
    def on_this_machine(self) -> bool:
        """False if a launcher takes the job elsewhere."""
        return self.launcher is None or str(self.launcher._target_).startswith((BASIC, LOCAL))

    @property
    def shares_machine(self) -> bool:
        """True if runs of a sweep share this machine."""
        return self.launcher is not None and str(self.launcher._target_).startswith(LOCAL)


def read(argv: Sequence[str]) -> Command:
    """Return the command line; UserError for what Hydra cannot parse."""
    arguments = [_quoted(_utf8(argument)) for argument in argv]
    flags = _parser().parse_intermixed_args(arguments)
    if flags.help or flags.hydra_help:  # which are the same whatever else is asked for
        return Command(flags, tuple(_search_path(flags)), ("--help" if flags.help else "--hydra-help",))
    _judge(flags)
    rest = tuple(argument for argument in arguments if argument not in flags.overrides)
    return Command(flags, (*flags.overrides, *_search_path(flags), *_naming(flags)), rest)


def _parser() -> argparse.ArgumentParser:
    """Return Hydra's parser with our version, and our way to complain."""
    parser = argparse.ArgumentParser(parents=[get_args_parser()], add_help=False, conflict_handler="resolve")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "hydra-core"))
    told = f"mlrun {__version__} ({libraries}, Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=told)
    parser.error = _refuse  # type: ignore[method-assign]
    return parser


def _judge(flags: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go together, or that Hydra would answer with a traceback."""
    if flags.config_name is not None or flags.config_path is not None:
        _refuse("--config-name and --config-path: allowed: --config-dir FOLDER, which adds to the files of mlrun")
    if flags.experimental_rerun is not None:
        _refuse("--experimental-rerun: allowed: run=FOLDER, which goes on with a run; a pickle is never read")
    modes = {"--run": flags.run, "-m": flags.multirun, "--cfg": flags.cfg, "--info": flags.info}
    modes["--shell-completion"] = flags.shell_completion
    if len(given := [name for name, value in modes.items() if value]) > 1:
        _refuse(f"{' '.join(given)}: allowed: one of them at a time")
    if flags.cfg is None and flags.package is not None:
        _refuse("--package: allowed: beside --cfg")
    if flags.resolve and flags.cfg not in ("job", "all"):
        _refuse("--resolve: allowed: beside --cfg job or --cfg all")
    if flags.shell_completion:
        asked = [text.partition("=")[::2] for text in flags.overrides]
        if len(asked) != 1 or asked[0][0] not in ("install", "uninstall", "query") or asked[0][1] not in SHELLS:
            text, shells = " ".join(flags.overrides), ", ".join(SHELLS)
            _refuse(f"-sc {text}: allowed: install=, uninstall= or query= with {shells}")


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; mlrun --hydra-help lists the flags")


def _utf8(argument: str) -> str:
    """Return an argument; UserError if it is no text, such as the name of a file in an old encoding."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = argument.encode(errors="backslashreplace").decode()
        raise UserError(f"{shown}: allowed: text in UTF-8; rename the file or folder") from None
    return argument


def _quoted(argument: str) -> str:
    """Return `run=...` and `runs=...` as a quoted string, anything else as it is."""
    key, _, value = argument.partition("=")
    if key not in PATHS or value in ("", "null", "???") or value[0] in "'\"" or "${" in value:
        return argument
    return f"{key}={_quotes(value)}"


def _quotes(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _search_path(flags: argparse.Namespace) -> list[str]:
    """Return the override that adds the user's folders of YAML files: --config-dir and ./conf."""
    folders = [Path("conf")] if Path("conf").is_dir() else []
    if flags.config_dir is not None:
        folders.insert(0, Path(flags.config_dir))
        if not os.path.isdir(flags.config_dir):
            raise UserError(mistake("--config-dir", flags.config_dir, "an existing folder", "correct the path"))
    folders = [folder.resolve() for folder in folders if folder.resolve() != conf_dir()]
    if not folders or any(o.startswith("hydra.searchpath=") for o in flags.overrides):
        return []
    if hidden := [line for folder in folders for line in _hidden(folder)]:
        raise UserError(hidden)
    paths = ",".join(_quotes(f"file://{folder}") for folder in folders)
    return [f"hydra.searchpath=[{paths}]"]


def _naming(flags: argparse.Namespace) -> list[str]:
    """Return the override that names the folders of a sweep by what it varies, and by nothing that all runs share.

    Also without -m: `hardware=slurm` makes a sweep of a single run.
    """
    shared = sorted({o.key_or_group for o in _parsed(flags.overrides) if not o.is_sweep_override()} | {"run", "task"})
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(_quotes, shared))}]"]


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


@contextmanager
def _loader() -> Iterator[ConfigLoader]:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="mlrun"):
        yield GlobalHydra.instance().config_loader()


def points(command: Command) -> list[Point]:
    """Return every configuration of a command line, in order; UserError with everything that does not compose."""
    with _loader() as loader:
        parsed = _parsed(command.overrides, loader)
        _refuse_deletions(parsed)
        sweep = command.flags.multirun or any(o.input_line == "hydra.mode=MULTIRUN" for o in parsed)
        if not sweep:
            if lists := [str(o.input_line) for o in parsed if o.is_sweep_override()]:
                remedy = "allowed: one value; add -m to run each, or write a list as [a,b]"
                raise UserError([f"{text}: {remedy}" for text in lists])
            config = _load(loader, list(command.overrides), RunMode.RUN)
            sweep = config.hydra.mode == RunMode.MULTIRUN
            if not sweep:
                _refuse_shown(config, command.flags)
                return [_point(config, "run.dir", "")]
        return _sweep(loader, parsed, command)


def _refuse_deletions(parsed: Sequence[Override]) -> None:
    needed = [o.key_or_group for o in parsed if o.is_delete() and o.key_or_group in Settings.__dataclass_fields__]
    if needed:
        raise UserError([f"~{key}: allowed: {key}=VALUE; every run needs it: give another value" for key in needed])


def _refuse_shown(config: DictConfig, flags: argparse.Namespace) -> None:
    """Raise UserError if --cfg could not print what it is asked for."""
    part = "" if flags.package is None else flags.package.removeprefix("_global_")
    printed = copy.deepcopy(config)
    if flags.cfg == "job":
        with open_dict(printed):
            del printed["hydra"]
    if part and OmegaConf.select(printed, part) is None:
        raise UserError(mistake("--package", part, ", ".join(map(str, printed)), "name a group or a part of one"))
    if flags.resolve:
        with _read():
            OmegaConf.to_container(printed, resolve=True)


@contextmanager
def _read() -> Iterator[None]:
    """Turn a `${...}` that leads nowhere into a UserError where a value is read."""
    try:
        yield
    except REFERENCE_ERRORS as error:
        raise UserError(unresolved(error)) from None


def _parsed(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Return the overrides; the loader knows what a glob() stands for."""
    parser, parsed, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
            parsed[-1].config_loader = loader
        except HydraException as error:
            line = f"allowed: KEY=VALUE; {reason(error)}: quote values with special characters"
            problems.append(f"{text or repr('')}: {line}")
    if problems:
        raise UserError(problems)
    return parsed


def _sweep(loader: ConfigLoader, parsed: list[Override], command: Command) -> list[Point]:
    """Return the points as Hydra's own sweeper makes them; of another sweeper's, only what all of them share."""
    fixed = [str(o.input_line) for o in parsed if o.is_hydra_override()]
    master = _load(loader, [str(o.input_line) for o in parsed if not o.is_sweep_override()], RunMode.MULTIRUN)
    for plugin in ("launcher", "sweeper"):
        if OmegaConf.select(master, f"hydra.{plugin}._target_") is None:
            raise UserError(mistake(f"hydra/{plugin}", "null", "a choice", "leave it out; the default is basic"))
    sweeper, launcher = master.hydra.sweeper, master.hydra.launcher
    if not str(sweeper._target_).startswith(BASIC):
        return [_point(master, "sweep.dir", "what all runs share", launcher)]
    with _read():
        given = _parsed([f"{key}={value}" for key, value in (sweeper.params or {}).items()], loader)
    wanted = [*given, *(o for o in parsed if not o.is_hydra_override())]
    _refuse_sweeps([o for o in wanted if o.is_sweep_override()])
    (jobs,) = BasicSweeper.split_arguments(wanted, max_batch_size=None)
    swept = {o.get_key_element() for o in wanted if o.is_sweep_override()}
    composer = _Composer(loader, fixed, set(master.hydra.runtime.choices))
    found: list[Point] = []
    lines: dict[str, None] = {}
    for number, job in enumerate(jobs):
        label = " ".join(text for text in job if text.partition("=")[0] in swept)
        try:
            found.append(_point(composer.config(job, number), "sweep.dir", label, launcher))
        except UserError as error:
            lines |= dict.fromkeys(error.problems)
    if lines:
        raise UserError(lines)
    return found


def _refuse_sweeps(sweeps: Sequence[Override]) -> None:
    """Raise UserError for sweeps over nothing, over what cannot be counted, and over too much."""
    counts, lines = [1], []
    for override_ in sweeps:
        try:
            counts.append(sum(1 for _ in islice(override_.sweep_string_iterator(), MOST_RUNS + 1)))
            why = "" if counts[-1] > 0 else "it holds none"
        except (HydraException, ValueError) as error:
            why = reason(error)
        if why:
            lines.append(f"{override_.input_line}: allowed: values, at least one; {why}: list the values instead")
    if not lines and math.prod(counts) > MOST_RUNS:
        text = " ".join(str(o.input_line) for o in sweeps)
        lines.append(f"{text}: allowed: at most {MOST_RUNS} runs; sweep over less at a time")
    if lines:
        raise UserError(lines)


class _Composer:
    """Composes the points of a sweep: files once for each set of choices, then the values on a copy.

    Hydra's own way takes 0.1 s a point, which is too long for hundreds of them.
    """

    def __init__(self, loader: ConfigLoader, fixed: Sequence[str], choices: set[str]) -> None:
        self._loader, self._fixed, self._choices = loader, list(fixed), choices
        self._files: dict[tuple[str, ...], DictConfig] = {}

    def config(self, job: Sequence[str], number: int) -> DictConfig:
        """Return the configuration of job `number`."""
        overrides = _parsed(job)
        values = [o for o in overrides if "." in o.key_or_group or o.key_or_group not in self._choices]
        files = tuple(str(o.input_line) for o in overrides if o not in values)
        if files not in self._files:
            self._files[files] = _load(self._loader, [*self._fixed, *files], RunMode.RUN)
        config = copy.deepcopy(self._files[files])
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
        except Exception:
            return _load(self._loader, [*self._fixed, *job], RunMode.RUN)  # raises with the reason
        settings = config.hydra.job.config.override_dirname
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.overrides.task = list(job)
            config.hydra.job.override_dirname = get_overrides_dirname(overrides=overrides, **settings)
        return config


def override(key: str, path: Path | str) -> str:
    """Return the override that sets a path."""
    return _quoted(f"{key}={path}")


def _point(config: DictConfig, place: str, label: str, launcher: DictConfig | None = None) -> Point:
    """Return a composed configuration as a point; `place` is Hydra's key of its folder."""
    if named := trust.foreign(config.hydra):
        raise UserError(named)
    with _read():
        if not config.run:
            raise UserError(mistake("run", config.run, "a folder", "give run=outputs/NAME, or leave it out"))
        str(config.task)  # decides, before all is checked, what is
        folder = Path(str(OmegaConf.select(config.hydra, place)))
        if place == "sweep.dir" and config.hydra.job.get("num") is not None:
            folder /= str(config.hydra.sweep.subdir)
    settings = copy.deepcopy(config)
    with open_dict(settings):
        del settings["hydra"]
    written = settings._get_node("run")
    said, model = tuple(config.hydra.overrides.task), config.hydra.runtime.choices.get("model")
    return Point(settings, folder, label, "${now:" not in str(written), launcher, said, model)


def _load(loader: ConfigLoader, overrides: list[str], mode: RunMode) -> DictConfig:
    try:
        return loader.load_configuration(CONFIG, overrides, run_mode=mode)
    except Exception as error:
        lines = _blame(lambda some: loader.load_configuration(CONFIG, some, run_mode=mode), overrides, error)
        raise UserError(lines) from None


def _blame(load: Callable[[list[str]], DictConfig], overrides: list[str], error: Exception) -> list[str]:
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


def _explain(error: Exception, text: str | None, base: DictConfig | None) -> str:
    """Return one line about an error of Hydra or OmegaConf; `base` is what the override `text` should change."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = list(error.options)
        return mistake(group, name, ", ".join(options), f"choose one{nearest(name, options)}")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if text is None or base is None:
        return _line(cause)
    key = text.partition("=")[0]
    known = _known(base, key.lstrip("+~"))
    if known is not None and not key.startswith("+"):
        return f"{text}: allowed: {', '.join(known)}; correct the key{nearest(key.rpartition('.')[2], known)}"
    return f"{text}: allowed: {_line(cause)}; correct the value"


def _line(error: Exception) -> str:
    """Return the reason of an error on one line; some give it after a colon on the next, YAML's on several."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
    if isinstance(error, yaml.YAMLError):
        return " ".join(lines)
    told = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return told if told and isinstance(error, ERRORS) else f"{type(error).__name__} {told}".rstrip()


def _known(base: DictConfig, key: str) -> list[str] | None:
    """Return the keys that exist where the first unknown part of `key` stands; None if all parts are known."""
    if "/" in key:
        return None  # a group of Hydra's
    node: Any = base
    for part in key.split("."):
        if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
            return None  # nothing stands below it
        keys = [str(name) for name in (node if isinstance(node, DictConfig) else range(len(node)))]
        if part not in keys:
            return sorted({*keys, *(["experiment", "method"] if node is base else [])} - {"hydra"})
        node = node._get_node(part) if isinstance(node, DictConfig) else node._get_node(int(part))
    return None
