"""The tasks of GLUE (Wang et al. 2019, arXiv 1804.07461): their columns, answers, metrics and rows. No torch here."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlrun.data import huggingface
from mlrun.errors import UserError, mistake
from mlrun.evaluate import lines
from mlrun.files import expanded

HUB, REPOSITORY = "hub", "nyu-mll/glue"
TRAIN = "train"
ENTAILED = ("entailment", "not_entailment")
SENTENCES = (("sentence1", "#1 String"), ("sentence2", "#2 String"))


@dataclass(frozen=True)
class Task:
    """One task; its names of columns are those of the hub, then those of GLUE's own files.

    texts: of one or two texts, the names that the column may have.
    labels: the answers, in the order of their numbers on the hub; () for a number that is to be predicted.
    metrics: as GLUE prescribes; a task's score is their mean.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    label: tuple[str, ...] = ("label",)
    hub: str | None = None  # its configuration there, if it is not called as the task is
    dev: str = "validation"


_NLI = (("premise", "sentence1"), ("hypothesis", "sentence2"))
_THREE = ("entailment", "neutral", "contradiction")
_BOTH = ("accuracy", "f1")
TASKS: Mapping[str, Task] = {
    "cola": Task((("sentence",),), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": Task((("sentence",),), ("negative", "positive")),
    "mrpc": Task(SENTENCES, ("not_equivalent", "equivalent"), _BOTH, ("label", "Quality")),
    "stsb": Task(SENTENCES, (), ("pearson", "spearman"), ("label", "score")),
    "qqp": Task((("question1",), ("question2",)), ("not_duplicate", "duplicate"), _BOTH, ("label", "is_duplicate")),
    "mnli": Task(_NLI, _THREE, label=("label", "gold_label"), dev="validation_matched"),
    "mnli_mm": Task(_NLI, _THREE, label=("label", "gold_label"), hub="mnli", dev="validation_mismatched"),
    "qnli": Task((("question",), ("sentence",)), ENTAILED),
    "rte": Task(SENTENCES, ENTAILED),
    "wnli": Task(SENTENCES, ("not_entailment", "entailment")),
}


@dataclass(frozen=True)
class Example:
    """One or two texts and the answer: the number of a class, or a number that is to be predicted."""

    texts: tuple[str, ...]
    answer: float


Examples = tuple[Example, ...]


@cache
def on_the_hub(name: str, part: str) -> Examples:
    """Return the examples of a part (train, dev) of a task on the Hugging Face hub; UserError if it cannot be had."""
    task, key = TASKS[name], "evaluation.glue.tasks"
    split = TRAIN if part == TRAIN else task.dev
    config = task.hub or name
    label = f"{REPOSITORY} {config} {split}"
    rows = huggingface.load(key, label, REPOSITORY, name=config, split=split)
    return tuple(_examples(task, ((f"{label}, row {number}", row) for number, row in enumerate(rows)), label))


@cache
def of_file(name: str, file: str) -> Examples:
    """Return the examples of a .tsv, .csv, .jsonl or .parquet file; UserError for one that does not fit the task."""
    return tuple(_examples(TASKS[name], READERS[Path(file).suffix.lower()](file), file))


def _tab(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row): in GLUE's .tsv files a quotation mark is one, and ends nothing."""
    return _table(file, {"delimiter": "\t", "quoting": csv.QUOTE_NONE})


def _comma(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return _table(file, {})


def _table(file: str, form: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a file whose first line names its columns."""
    reader = csv.reader(lines.read(file).splitlines(keepends=True), **form)
    try:
        header = next(reader, [])
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if row and len(row) != len(header):
                raise UserError(f"{where}: {len(row)} columns, but the first line names {len(header)}; repair it")
            if row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: cannot be read ({error}); repair it") from None


def _parquet(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    with huggingface.readable("evaluation.glue.tasks", file):
        rows = pyarrow.parquet.read_table(file).to_pylist()
    return ((f"{file}, row {number}", row) for number, row in enumerate(rows))


READERS = {".tsv": _tab, ".csv": _comma, ".jsonl": lines.objects, ".parquet": _parquet}


def _examples(task: Task, rows: Iterable[tuple[str, Mapping[str, Any]]], label: str) -> Iterator[Example]:
    """Yield the examples of rows; UserError without any, for a missing column, and for an answer that is none."""
    where = None
    for where, row in rows:
        texts, answer = (_column(row, names, where) for names in task.texts), _column(row, task.label, where)
        yield Example(tuple(_text(text, where) for text in texts), _answer(task, answer, where))
    if where is None:
        raise UserError(f"{label}: no example in it; name another file")


def _column(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise UserError(
            f"{where}: no column {' or '.join(names)} among {', '.join(map(str, row))}; name it in a header"
        )
    return row[found]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r} is no text; repair it")
    return value


def _answer(task: Task, value: Any, where: str) -> float:
    """Return the number of an answer, which is given by its name or its number; of no class, the value itself."""
    if value in task.labels:
        return float(task.labels.index(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number in range(len(task.labels)) if task.labels else abs(number) < float("inf"):
        return number
    known = " or ".join(f"{name} ({number})" for number, name in enumerate(task.labels)) or "a number"
    raise UserError(mistake(f"{where}: label", value, known, "name a file whose answers are known"))


def pair_problems(name: str, files: Any) -> list[str]:
    """Return what is wrong with where a task comes from: the hub, or {train: FILE, dev: FILE}; it is read."""
    key = f"evaluation.glue.tasks.{name}"
    if name not in TASKS:
        return [mistake("evaluation.glue.tasks", name, ", ".join(TASKS), "choose among them")]
    if files != HUB and not (isinstance(files, Mapping) and set(files) == {TRAIN, "dev"}):
        return [mistake(key, files, f"{HUB}, or {{train: FILE, dev: FILE}}", "say where both are")]
    if files != HUB and (found := [line for part in files for line in _file_problems(f"{key}.{part}", files[part])]):
        return found
    try:
        train, dev = parts(name, files)
    except UserError as error:
        return error.problems
    if set(dev) <= set(train):
        return [mistake(f"{key}.dev", files["dev"], "other examples than those of train", "name another file")]
    return []


def _file_problems(key: str, file: Any) -> list[str]:
    if Path(str(file)).suffix.lower() not in READERS:
        return [mistake(key, file, f"a file that ends in {', '.join(READERS)}", "rename or convert it")]
    return lines.problems(key, [str(file)])


def parts(name: str, files: Any) -> tuple[Examples, Examples]:
    """Return the training and the dev examples of a task, read before; UserError for what does not fit it."""
    if files == HUB:
        return on_the_hub(name, TRAIN), on_the_hub(name, "dev")
    train, dev = files_of(files)
    return of_file(name, train), of_file(name, dev)


def files_of(files: Any) -> list[str]:
    """Return the files of a task, of training and dev examples; none where it comes from the hub."""
    return [] if files == HUB else [str(expanded(str(files[part]))) for part in (TRAIN, "dev")]
