"""What a task lacks, and what it was given that it would not read: a line for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from omegaconf import DictConfig, OmegaConf

from mlrun.cli.tasks import TASKS
from mlrun.config.settings import ARGUMENTS, Hardware, Sample, Settings, choice_problems
from mlrun.errors import mistake
from mlrun.plan import check
from mlrun.plan.stages import alpha_problems
from mlrun.plan.unused import Said

# Choices that say nothing by themselves: their files may give any setting.
DIFFS = ("experiment", "method", "scale", "recipe")


def missing(settings: DictConfig, own_run: bool) -> list[str]:
    """Return a line for each key that a task needs and that was not given; `run` is given if not by the clock."""
    task, lines = TASKS[settings.task], []
    for need in task.needs:
        keys = need.split("|")
        given = [key for key in keys if settings[key] is not None and (key != "run" or own_run)]
        if need == "run|source" and len(given) > 1 and not task.writes:
            lines.append(mistake("run", settings.run, "left out", f"task={task.name} reads source= alone: give one"))
        if not given:
            wanted = " or ".join(f"{key}=FOLDER" for key in keys)
            lines.append(mistake(keys[0], "not given", "a folder", f"task={task.name} needs {wanted}"))
    return lines


def stray(settings: DictConfig, words: Mapping[str, Said]) -> list[str]:
    """Return a line for each argument of other tasks, and each word of a training, that would do nothing."""
    return _arguments(settings) + _of_a_training(settings, words)


def wrong(settings: DictConfig) -> list[str]:
    """Return what is wrong with the values of a training that a task without a plan reads, a line each."""
    if not TASKS[settings.task].settings:
        return []
    hardware = OmegaConf.to_object(settings.hardware)
    assert isinstance(hardware, Hardware)
    numbers = check.small(settings.seed, settings.eval.batch, hardware)
    if "cycle.alpha" in TASKS[settings.task].settings:
        numbers += alpha_problems("cycle.alpha", settings.cycle.alpha)
    return numbers + choice_problems({"hardware": asdict(hardware)})


def _of_a_training(settings: DictConfig, words: Mapping[str, Said]) -> list[str]:
    """Return a line for each word that says something of a training, to a task that does not read it."""
    task = TASKS[settings.task]
    if task.planned:
        return []
    read = ["task", *task.reads, *task.settings, *(task.beside_source if settings.source is not None else ())]
    read += ["run"] * task.writes + list(DIFFS) * bool(task.settings)
    runs_own = {key: " without source=: a run has its own" for key in words if _within(key, task.beside_source)}
    return [
        mistake(key, one.value, "left out", f"task={task.name} does not read it{runs_own.get(key, '')}")
        for key, one in words.items()
        if key.partition(".")[0] not in ARGUMENTS and not _within(key, read) and not (task.trains and key != "run")
    ]


def _within(key: str, names: Sequence[str]) -> bool:
    """Return whether a key is one of those named, below one of them, or above."""
    return any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in names)


def _arguments(settings: DictConfig) -> list[str]:
    """Return a line for each argument of other tasks that was given."""
    task, lines = TASKS[settings.task], []
    for key in (name for name in ARGUMENTS if name != "scale" and name not in task.reads):
        given, unsaid = settings[key], getattr(Settings, key, None)
        readers = ", ".join(f"task={name}" for name, other in TASKS.items() if key in other.reads)
        remedy = f"task={task.name} does not read it, {readers} would"
        remedy += ": init=FOLDER is what a run starts from" if key == "source" and task.planned else ""
        if key == "sample":
            asked = {name: value for name, value in given.items() if value != getattr(Sample, name)}
            lines += [mistake(f"sample.{name}", value, "left out", remedy) for name, value in asked.items()]
        elif given != unsaid:
            lines.append(mistake(key, given, "left out", remedy))
    return lines
