"""`mlrun --help GROUP`: its choices and its keys, each with what the YAML files say of it."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlrun.cli import points
from mlrun.cli.command import Command, parsed
from mlrun.cli.said import DIFF
from mlrun.cli.tasks import TASKS
from mlrun.config.settings import GROUPS
from mlrun.errors import UserError, nearest

# What stands for the single values, which are in no group's file.
SINGLE = "settings"
# Longest key, in characters, that its explanation stands beside; a longer one has it below.
_BESIDE = 36
_WIDEST = 120
_ABSENT = object()


def text(asked: Command) -> str:
    """Return what is known of each subject of a command line; UserError for a word that is none."""
    with points.hydra_loader() as loader:
        parsed(asked.overrides, loader)
        files = Files(loader, list(asked.overrides))
        if lines := [line for subject in asked.subjects if (line := files.unknown(subject))]:
            raise UserError(lines)
        return "\n\n".join("\n".join(_about(files, subject)) for subject in asked.subjects)


class Files:
    """The YAML files that overrides choose, composed, and what they say."""

    def __init__(self, loader: ConfigLoader, overrides: list[str]) -> None:
        self.config = points.compose(loader, overrides, RunMode.RUN)
        self._loader, self._overrides = loader, overrides
        sources = self.config.hydra.runtime.config_sources
        self._folders = [Path(str(one.path)) for one in sources if one.schema == "file"]
        self.comments: dict[str, str] = {}
        for one in loader.compute_defaults_list(points.CONFIG, overrides, RunMode.RUN).defaults:
            for key, comment in _said(self._text(str(one.config_path))):
                if comment:  # the first is of the file that explains; what others say is about their value
                    self.comments.setdefault(".".join(filter(None, (one.package, key))), comment)

    def choices(self, subject: str) -> dict[str, str]:
        """Return the choices of a group with what each file says first of itself, none if it is no group."""
        group = subject.replace(".", "/")
        names = self._loader.get_group_options(group, config_name=points.CONFIG, overrides=self._overrides)
        own = [name for name in names if not name.endswith("_schema")]  # which Hydra's plugins have beside a choice
        return {name: _sentence(_head(self._text(f"{group}/{name}"))) for name in own}

    def chosen(self, subject: str) -> str | None:
        """Return the choice of a group; None if it has none, or several."""
        return self.config.hydra.runtime.choices.get(subject.replace(".", "/"))

    def rows(self, subject: str) -> list[tuple[str, str]]:
        """Return `KEY=VALUE` and what is said of it, for all that stands below a subject."""
        if subject == SINGLE:
            names = [name for name in self.config if name not in (*GROUPS, *self._groups())]
            return [row for name in names for row in self._below(str(name), _written(self.config, str(name)))]
        key, choice = subject.replace("/", "."), self.chosen(subject)
        self._learn(subject)
        if found := self._set_elsewhere(subject, choice):
            return [row for name in found for row in self._below(name, found[name])]
        return list(self._below(key, _written(self.config, key)))

    def _learn(self, subject: str) -> None:
        """Take what the group's other files explain: one of them may do so for all."""
        for name in self.choices(subject):
            text = self._text(f"{subject.replace('.', '/')}/{name}")
            said: list[tuple[str, str]] = []
            place = "" if _places_itself(text) else f"{subject.replace('/', '.')}."
            with contextlib.suppress(yaml.YAMLError):  # a broken file that was not chosen explains nothing
                said = list(_said(text))
            for key, comment in said:
                if comment and f"{place}{key}".startswith(f"{subject.replace('/', '.')}."):
                    self.comments.setdefault(f"{place}{key}", comment)

    def unknown(self, subject: str) -> str:
        """Return the line about a word that is neither group nor key, '' for one that is."""
        if subject == SINGLE or self.choices(subject) or self._is_key(subject):
            return ""
        if subject in TASKS:
            return f"--help {subject}: allowed: a group or key; task={subject}: {TASKS[subject].help}"
        known = [SINGLE, *self._groups(), *(str(name) for name in self.config if name != "hydra")]
        names = list(dict.fromkeys(known))
        what = f"a group or key: {', '.join(names)}, or one below, such as optimizer.lr"
        return f"--help {subject}: allowed: {what}; correct the word{nearest(subject, names)}"

    def _is_key(self, subject: str) -> bool:
        return _written(self.config, subject.replace("/", "."), _ABSENT) is not _ABSENT

    def _groups(self) -> list[str]:
        return list(self._loader.list_groups(""))

    def _set_elsewhere(self, subject: str, choice: str | None) -> dict[str, Any]:
        """Return what a choice sets that has no place of its own, such as that of a method."""
        text = self._text(f"{subject.replace('.', '/')}/{choice}") if choice else ""
        found: Any = OmegaConf.to_container(OmegaConf.create(text)) if _places_itself(text) else {}
        return {str(key): value for key, value in found.items() if key not in ("defaults", "hydra")}

    def _below(self, key: str, value: Any) -> Iterator[tuple[str, str]]:
        comment = self.comments.get(key, "")
        if not isinstance(value, dict) or not value:
            yield f"{key}={_flow(value)}", comment
            return
        if comment:
            yield f"{key}:", comment
        for name in value:
            if name != "_target_":
                yield from self._below(f"{key}.{name}", value[name])

    def _text(self, name: str) -> str:
        """Return the text of a YAML file; '' for what Hydra or a plugin keeps elsewhere."""
        found = (folder / f"{name}.yaml" for folder in self._folders)
        return next((file.read_text(errors="replace") for file in found if file.is_file()), "")


def _places_itself(text: str) -> bool:
    """Return whether a YAML file sets keys of the whole configuration, and none below its group."""
    return DIFF in text.splitlines()


def _head(text: str) -> str:
    """Return what a YAML file says of itself: its first lines."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return _joined([line for line in lines if not line.startswith("# @package")])


def _said(text: str) -> Iterator[tuple[str, str]]:
    """Yield every key (`schedule.warmup`) of a YAML file, or group of its defaults, with what stands above it."""
    lines = text.splitlines()
    head = sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), lines))
    node = yaml.compose(text, yaml.SafeLoader)
    return _keys(node, lines, "", head) if isinstance(node, yaml.MappingNode) else iter(())


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str, head: int) -> Iterator[tuple[str, str]]:
    """Yield every key below a node with the comment above it, which is not the head of the file."""
    for key, value in node.value:
        if prefix == "" and key.value == "defaults":
            for item in value.value:
                if isinstance(item, yaml.MappingNode):
                    yield str(item.value[0][0].value), _above(lines, item.start_mark.line, head)
            continue
        path = f"{prefix}{key.value}"
        yield path, _above(lines, key.start_mark.line, head)
        if isinstance(value, yaml.MappingNode):
            yield from _keys(value, lines, f"{path}.", head)


def _above(lines: list[str], number: int, head: int) -> str:
    """Return the block of comment lines that ends above a line."""
    start = number
    while start > head and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return _joined([line.strip() for line in lines[start:number]])


def _joined(lines: list[str]) -> str:
    """Return a comment as one text, in which a line that is set in, a command mostly, stays a line."""
    said, before = "", False
    for text in (line.removeprefix("#") for line in lines):
        set_in = text.startswith("  ")
        said += ("\n" if set_in or before else " ") + text.strip()
        before = set_in
    return said.strip()


def _sentence(comment: str) -> str:
    """Return the first sentence of a comment, with the commands that follow it."""
    return re.split(r"(?<=[.:])\s+(?=[A-Z`])|\n(?=[A-Z`])", comment, maxsplit=1)[0]


def _written(config: DictConfig, key: str, default: object = None) -> Any:
    """Return what stands at a key as it is written, references and all; the default if nothing does."""
    node: Any = OmegaConf.to_container(config)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def _flow(value: Any) -> str:
    """Return a value as the command line takes it, the columns of a row that are not given left out."""
    if value == "???":
        return "???"
    if isinstance(value, list):
        value = [{k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else row for row in value]
    return yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=float("inf")).strip()[1:-1]


def _about(files: Files, subject: str) -> Iterator[str]:
    """Yield the lines about a subject."""
    choices, chosen, rows = files.choices(subject), files.chosen(subject), files.rows(subject)
    if choices:
        key = subject.replace("/", ".")
        yield f"{subject}: {_sentence(files.comments.get(key, 'a group'))}"
        yield from _table([(f"{subject}={name}", said) for name, said in choices.items()])
        rows = [row for row in rows if row[0] not in (f"{key}:", f"{key}=null", f"{key}={{}}")]
        if rows:
            yield ""
            yield f"What {subject}={chosen} sets:" if chosen else "What is set:"
    yield from _table(rows)


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Yield rows in two columns; what is said of a long key stands below it."""
    fitting = [len(key) for key, _ in rows if len(key) <= _BESIDE]
    width = max(fitting, default=_BESIDE) + 4
    columns = max(min(shutil.get_terminal_size().columns, _WIDEST) - width, 24)
    for key, comment in rows:
        said = [part for line in comment.split("\n") for part in _wrapped(line, columns)]
        start = f"  {key}".ljust(width) + (said.pop(0) if said and len(key) <= _BESIDE else "")
        yield start.rstrip()
        yield from (" " * width + line for line in said)


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)
