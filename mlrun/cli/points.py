"""Every configuration that a command line asks for: one, or the points of a sweep. Nothing is written here.

Hydra itself composes once more when it runs: by then every point of a sweep is known to compose.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mlrun.cli import said, space, steady, trust
from mlrun.cli.blame import blame
from mlrun.cli.command import Command, parsed
from mlrun.cli.tasks import TASKS
from mlrun.config.load import REFERENCE_ERRORS, conf_dir, unresolved
from mlrun.config.settings import GROUPS, Settings, reason
from mlrun.errors import UserError, mistake, nearest
from mlrun.files import expanded
from mlrun.plan.unused import Said

CONFIG = "config"
# More runs than this in one sweep are taken for a slip of the pen.
MOST_RUNS = 10_000
# Our sweepers: the one whose points are known before it runs, and the one that looks for them; and the launchers that
# stay on this machine.
GRID = "hydra_plugins.mlrun_sweepers.grid.GridSweeper"
OPTUNA = "hydra_plugins.mlrun_sweepers.optuna.OptunaSweeper"
BASIC = "hydra._internal.core_plugins."
LOCAL = "hydra_plugins.mlrun_launchers.local."

# How conf/config.yaml names the folder of one of several runs, which OmegaConf takes milliseconds to read for each.
_SUBDIR = "${hydra.job.num}-${safe_name:${hydra.job.override_dirname}}"
# What a text refers to: the key, or the name of a resolver.
_REFERENCE = re.compile(r"\$\{([^:}]*)")

ConfigStore.instance().store(name="settings", node=Settings)
# Hydra copies all that was ever stored whenever it composes or lists a group, though the store is a singleton that
# copies what it gives away: half of the time of --help.
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


def safe_name(text: str) -> str:
    """Return a text as one name that every file system takes, with at most 150 characters."""
    kept = "".join(c if c.isalnum() or c in "-=,._" else "_" for c in text)
    return kept[:150] or "run"


def _task_list() -> str:
    """Return the tasks as the help shows them: name, what must be given, what it does."""
    rows = [
        (name, " ".join(f"{key.replace('|', '= or ')}=" for key in task.needs), task.help)
        for name, task in TASKS.items()
    ]
    return "\n".join(f"  {name:<12} {needs:<23} {text}" for name, needs, text in rows)


# Also run wherever a launcher unpickles a job, which resolves the job's folder there.
OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
OmegaConf.register_new_resolver("tasks", _task_list, replace=True)
# No shell has read a `~` in quotes, in a YAML file or in a list of Python's.
OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)


@dataclass(frozen=True)
class Point:
    """One configuration that a command line asks for; `label` says what sets it apart in a sweep."""

    settings: DictConfig
    base: Path  # what `run` gives: the folder, or that of all runs
    folder: Path
    label: str
    own_run: bool  # False if the folder is the default, named by the clock
    launcher: DictConfig | None = None  # Hydra's, of a sweep
    overrides: tuple[str, ...] | None = None  # of a point of a sweep
    said: tuple[str, ...] = ()  # on the command line, but for Hydra's own
    diffs: Mapping[str, Said] = field(default_factory=dict)  # what files of the user's own give
    model: str | None = None  # the chosen file of the group
    constant: Mapping[str, Any] = field(default_factory=dict)  # plain parts of the settings that are so in many points

    @property
    def on_this_machine(self) -> bool:
        """False if a launcher takes the job elsewhere."""
        return self.launcher is None or str(self.launcher._target_).startswith((BASIC, LOCAL))

    @property
    def shares_machine(self) -> bool:
        """True if runs of a sweep share this machine."""
        return self.launcher is not None and str(self.launcher._target_).startswith(LOCAL)


def of(command: Command) -> list[Point]:
    """Return every configuration of a command line, in order; UserError with everything that does not compose."""
    with hydra_loader() as loader:
        overrides = parsed(command.overrides, loader)
        _refuse_edits(overrides)
        sweep = command.flags.multirun or any(o.input_line == "hydra.mode=MULTIRUN" for o in overrides)
        if not sweep:
            if lists := [str(o.input_line) for o in overrides if o.is_sweep_override()]:
                remedy = "allowed: one value; add -m to run each, or write a list as [a,b]"
                raise UserError([f"{text}: {remedy}" for text in lists])
            config = compose(loader, list(command.overrides), RunMode.RUN)
            if config.hydra.mode != RunMode.MULTIRUN:
                if not command.informs:
                    _refuse_unused(config)
                return [_single(config, "run.dir", "")]
        return _sweep(loader, overrides)


@contextmanager
def hydra_loader() -> Iterator[ConfigLoader]:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="mlrun"):
        yield GlobalHydra.instance().config_loader()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector of garbage from looking, again and again, through settings that all stay: half of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _reading() -> Iterator[None]:
    """Turn a `${...}` that leads nowhere into a UserError where a value is read."""
    try:
        yield
    except REFERENCE_ERRORS as error:
        raise UserError(unresolved(error)) from None


def compose(loader: ConfigLoader, overrides: list[str], mode: RunMode) -> DictConfig:
    """Return what overrides compose to; UserError with what is wrong."""
    try:
        return loader.load_configuration(CONFIG, overrides, run_mode=mode)
    except Exception as error:
        lines = blame(lambda some: loader.load_configuration(CONFIG, some, run_mode=mode), overrides, error)
        raise UserError(lines) from None


def _refuse_edits(overrides: Sequence[Override]) -> None:
    # Hydra would merge a second choice into the first, if its file has a base.
    twice = [o for o in overrides if o.is_add() and o.package is None and o.key_or_group in (*GROUPS, "cycle")]
    if twice:
        lines = [f"{o.input_line}: allowed: {str(o.input_line).lstrip('+')}; the group has a choice" for o in twice]
        raise UserError(lines)
    needed = [o.key_or_group for o in overrides if o.is_delete() and o.key_or_group in Settings.__dataclass_fields__]
    if needed:
        raise UserError([f"~{key}: allowed: {key}=VALUE; every run needs it: give another value" for key in needed])


def _refuse_unused(config: DictConfig) -> None:
    """Raise UserError for what only a sweep reads: the grid of an experiment, another launcher or sweeper."""
    chosen = OmegaConf.to_container(config.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    given = said.words(as_said(config.hydra.overrides.task))
    usual = {"hydra/launcher": "basic", "hydra/sweeper": "grid"}
    others = {key: chosen.get(key) for key, name in usual.items() if chosen.get(key) not in (name, None)}
    asked = said.words(as_said(config.hydra.overrides.hydra))
    found = [f"{key}={name}" for key, name in others.items() if key in asked]
    grid = list(config.hydra.sweeper.get("params") or {})
    # With all of a grid's keys given it is one of its runs, whatever an experiment starts those with.
    if not found and not (grid and all(key in given for key in grid)):
        by_name = f"experiment={chosen['experiment']}" if chosen.get("experiment") else "hydra.sweeper.params"
        found = [by_name] if grid else [f"{key}={name}" for key, name in others.items()]
    if found:
        raise UserError([f"{text}: allowed: with -m; it is about many runs: add -m, or leave it out" for text in found])


def _single(config: DictConfig, place: str, label: str, launcher: DictConfig | None = None) -> Point:
    """Return a composed configuration as a point; `place` is Hydra's key of its folder."""
    if named := trust.foreign(config.hydra):
        raise UserError(named)
    with _reading():
        if not config.run:
            raise UserError(mistake("run", config.run, "a folder", "give run=outputs/NAME, or leave it out"))
        str(config.task)  # decides, before all is checked, what is
        folder = Path(str(OmegaConf.select(config.hydra, place)))
    # As they are written: what they refer to is read, and judged, elsewhere.
    written = OmegaConf.to_container(OmegaConf.masked_copy(config, ["run"]))
    assert isinstance(written, dict)
    own_run, words = "${now:" not in str(written["run"]), as_said(config.hydra.overrides.task)
    known = {"model": config.hydra.runtime.choices.get("model"), "diffs": said.diffs(config.hydra)}
    base = expanded(str(config.run))
    return Point(_settings(config), base, folder, label, own_run, launcher, said=words, **known)


def package_problem(command: Command, point: Point) -> str | None:
    """Return a line if `--package` names nothing that `--cfg` shows; below its own section Hydra finds out."""
    package, shown = str(command.flags.package), command.flags.cfg
    if package == "_global_" or (shown != "job" and package.partition(".")[0] == "hydra"):
        return None
    if shown != "hydra" and _select(point.settings, package) is not None:
        return None
    parts = package.split(".")
    there = [depth for depth in range(len(parts)) if _select(point.settings, ".".join(parts[:depth])) is not None]
    node = {"hydra": None} if shown == "hydra" else _select(point.settings, ".".join(parts[: there[-1]]))
    known = [str(key) for key in node] if isinstance(node, dict | DictConfig) else []
    name = parts[0] if shown == "hydra" else parts[there[-1]]
    if name in known:
        return mistake("--package", package, "what has a value", "it is null here")
    return mistake("--package", package, ", ".join(known) or "what stands above it", f"name one{nearest(name, known)}")


def _select(settings: DictConfig, key: str) -> Any:
    return OmegaConf.select(settings, key, throw_on_resolution_failure=False) if key else settings


def as_said(overrides: Any) -> tuple[str, ...]:
    """Return overrides as they are written; an entry of the list would be resolved."""
    return tuple(map(str, cast(list[str], OmegaConf.to_container(overrides))))


def _settings(config: DictConfig) -> DictConfig:
    """Return a copy of a configuration without what is Hydra's."""
    settings = copy.deepcopy(config)
    with open_dict(settings):
        del settings["hydra"]
    return settings


def _sweep(loader: ConfigLoader, overrides: list[Override]) -> list[Point]:
    """Return the points of a grid; of another sweeper's, only what all of them share."""
    master = compose(loader, [str(o.input_line) for o in overrides if not o.is_sweep_override()], RunMode.MULTIRUN)
    for plugin in ("launcher", "sweeper"):
        if OmegaConf.select(master, f"hydra.{plugin}._target_") is None:
            raise UserError(mistake(f"hydra/{plugin}", "null", "a choice", "leave it out"))
    shared = _single(master, "sweep.dir", "what all runs share", master.hydra.launcher)
    # Judged as one of its runs would be: the folder that holds them all may hold some already.
    example = replace(shared, folder=shared.folder / "run")
    if master.hydra.sweeper._target_ == OPTUNA:
        return [example, *_probes(loader, overrides, master, shared)]
    if master.hydra.sweeper._target_ != GRID:
        return [example]
    with _reading():
        given = parsed([f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()], loader)
    wanted = [*given, *(o for o in overrides if not o.is_hydra_override())]
    _refuse_sweeps([o for o in wanted if o.is_sweep_override()])
    swept = {o.get_key_element() for o in wanted if o.is_sweep_override()}
    composer = _Composer(loader, [str(o.input_line) for o in overrides if o.is_hydra_override()], master)
    found: list[Point] = []
    lines: dict[str, None] = {}
    with _uncollected():
        for number, job in enumerate(_grid(wanted)):
            label = " ".join(text for text in job if text.partition("=")[0] in swept)
            try:
                found.append(replace(composer.point(job, number, shared), label=label, overrides=job))
            except UserError as error:
                lines |= dict.fromkeys(error.problems)
    if lines:
        raise UserError(lines)
    return found


def _probes(loader: ConfigLoader, overrides: list[Override], master: DictConfig, shared: Point) -> list[Point]:
    """Return points of a search's space that show whatever is wrong in it; the search itself asks for its own."""
    if find_spec("optuna") is None:
        raise UserError(mistake("hydra/sweeper", "optuna", "grid, basic", "pip install 'mlrun[find]' brings optuna"))
    with _reading():
        wanted = space.search(master.hydra.sweeper, overrides, int(master.seed))
    composer = _Composer(loader, [str(o.input_line) for o in overrides if o.is_hydra_override()], master)
    found, lines = [], dict[str, None]()
    for job in [point for method in wanted.methods for point in wanted.probes(method)]:
        try:
            label = " ".join(text for text in job if text not in wanted.fixed)
            found.append(replace(composer.point(job, 0, shared), label=label))
        except UserError as error:
            lines |= dict.fromkeys(error.problems)
    if lines:
        raise UserError(lines)
    return found


def _grid(overrides: Sequence[Override]) -> Iterator[tuple[str, ...]]:
    """Yield every combination of the overrides' values; the last of equal keys wins."""
    values = {
        o.get_key_element(): list(o.sweep_string_iterator())
        if o.is_sweep_override()
        else [o.get_value_element_as_str()]
        for o in overrides
    }
    return itertools.product(*([f"{key}={value}" for value in given] for key, given in values.items()))


def _refuse_sweeps(sweeps: Sequence[Override]) -> None:
    """Raise UserError for sweeps over nothing, over what cannot be counted, over too much, and over a value twice."""
    counts, lines = [1], []
    for override_ in sweeps:
        try:
            counts.append(sum(1 for _ in itertools.islice(override_.sweep_string_iterator(), MOST_RUNS + 1)))
            why = "" if counts[-1] > 0 else "it holds none"
            if counts[-1] <= MOST_RUNS and (twice := _repeated(override_)):
                lines.append(f"{override_.input_line}: allowed: each value once; leave out the second {twice}")
        except (HydraException, ValueError) as error:
            why = reason(error)
        if why:
            lines.append(f"{override_.input_line}: allowed: values, at least one; {why}: list the values instead")
    if not lines and math.prod(counts) > MOST_RUNS:
        text = " ".join(str(o.input_line) for o in sweeps)
        lines.append(f"{text}: allowed: at most {MOST_RUNS} runs; sweep over less at a time")
    if lines:
        raise UserError(lines)


def _repeated(sweep: Override) -> str:
    """Return a value that a sweep holds twice, which would be trained twice; '' if there is none."""
    seen = set()
    for value, text in zip(sweep.sweep_iterator(), sweep.sweep_string_iterator(), strict=True):
        if (one := repr(value)) in seen:
            return str(text)
        seen.add(one)
    return ""


@dataclass(frozen=True)
class _Chosen:
    """What one set of choices composes to: all of it, and the settings as bytes, of which copies are cheap.

    `subdir` is the name of a run's folder as it is written, `sections` what is
    known of its sections.
    """

    config: DictConfig
    settings: bytes
    subdir: str
    sections: Mapping[str, steady.Steady]
    diffs: Mapping[str, Said]


class _Composer:
    """Composes the points of a sweep: files once for each set of choices, then the values on a copy.

    Hydra's own way takes 0.1 s a point, which is too long for hundreds of them.
    """

    def __init__(self, loader: ConfigLoader, fixed: Sequence[str], master: DictConfig) -> None:
        self._loader, self._fixed, self._choices = loader, list(fixed), set(master.hydra.runtime.choices)
        naming = OmegaConf.to_container(master.hydra.job.config.override_dirname)
        assert isinstance(naming, dict)
        self._naming: dict[Any, Any] = naming
        self._chosen: dict[tuple[str, ...], _Chosen] = {}
        self._refused: dict[tuple[str, ...], list[str]] = {}
        self._read: dict[str, Override] = {}

    def point(self, job: tuple[str, ...], number: int, like: Point) -> Point:
        """Return job `number` of a sweep as a point that is otherwise `like` another."""
        for text in job:
            if text not in self._read:
                (self._read[text],) = parsed([text])
        overrides = [self._read[text] for text in job]
        values = [o for o in overrides if self._is_value(o)]
        files = tuple(str(o.input_line) for o in overrides if o not in values)
        chosen = self._compose(files)
        settings: DictConfig = pickle.loads(chosen.settings)
        if wrong := [o for o in values if not _fits(settings, o)]:
            settings = self._slowly(files, wrong, job)
        folder = like.folder / self._folder_name(chosen, overrides, values, number)
        model = chosen.config.hydra.runtime.choices.get("model")
        constant = steady.untouched(chosen.sections, frozenset(o.key_or_group.partition(".")[0] for o in values))
        known = {"said": job, "diffs": chosen.diffs, "model": model, "constant": constant}
        return replace(like, settings=settings, folder=folder, **known)

    def _slowly(self, files: tuple[str, ...], wrong: Sequence[Override], job: Sequence[str]) -> DictConfig:
        """Return what Hydra's own way composes a job to; UserError with the reason of each value that is wrong."""
        lines = [line for o in wrong for line in self._reasons((*files, str(o.input_line)))]
        if lines:
            raise UserError(dict.fromkeys(lines))
        return _settings(compose(self._loader, [*self._fixed, *job], RunMode.RUN))

    def _reasons(self, overrides: tuple[str, ...]) -> list[str]:
        """Return why overrides do not compose, nothing if they do; found once, since it takes seconds."""
        if overrides not in self._refused:
            self._refused[overrides] = []
            try:
                compose(self._loader, [*self._fixed, *overrides], RunMode.RUN)
            except UserError as error:
                self._refused[overrides] = error.problems
        return self._refused[overrides]

    def _is_value(self, o: Override) -> bool:
        """Return whether an override only changes a value; others choose files, add or delete."""
        plain = not (o.is_add() or o.is_force_add() or o.is_delete() or o.package)
        return plain and ("." in o.key_or_group or o.key_or_group not in self._choices)

    def _compose(self, files: tuple[str, ...]) -> _Chosen:
        if files not in self._chosen:
            if lines := self._refused.get(files):
                raise UserError(lines)
            try:
                config = compose(self._loader, [*self._fixed, *files], RunMode.RUN)
            except UserError as error:
                self._refused[files] = error.problems
                raise
            if named := trust.foreign(config.hydra):
                raise UserError(named)
            settings = _settings(config)
            sweep = OmegaConf.to_container(config.hydra.sweep)
            assert isinstance(sweep, dict)
            subdir, known = str(sweep["subdir"]), steady.sections(settings)
            self._chosen[files] = _Chosen(config, pickle.dumps(settings), subdir, known, said.diffs(config.hydra))
        return self._chosen[files]

    def _folder_name(
        self, chosen: _Chosen, overrides: Sequence[Override], values: Sequence[Override], number: int
    ) -> str:
        varied = sorted(str(o.input_line) for o in overrides if o.key_or_group not in self._naming["exclude_keys"])
        varied_name = self._naming["item_sep"].join(varied).replace("=", self._naming["kv_sep"])
        if chosen.subdir == _SUBDIR and "${" not in varied_name:
            return f"{number}-{safe_name(varied_name)}"
        config = chosen.config
        if not all(name.startswith("hydra.") or name == "safe_name" for name in _REFERENCE.findall(chosen.subdir)):
            config = copy.deepcopy(config)
            _update(config, values)
        with open_dict(config), _reading():
            config.hydra.job.num, config.hydra.job.override_dirname = number, varied_name
            return str(config.hydra.sweep.subdir)


def _fits(settings: DictConfig, o: Override) -> bool:
    """Put a value into settings; return whether they take it."""
    try:
        _update(settings, [o])
    except OmegaConfBaseException:
        return False
    return True


def _update(config: DictConfig, values: Sequence[Override]) -> None:
    for o in values:
        OmegaConf.update(config, o.key_or_group, o.value(), merge=True)
