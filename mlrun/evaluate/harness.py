"""The tasks of the lm-evaluation-harness (`lm-eval`, Gao et al.), on a model as it is: nothing is exported for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from omegaconf import MISSING

from mlrun.errors import UserError, mistake, mistakes
from mlrun.evaluate.base import Benchmark, Context, Result, Results
from mlrun.files import expanded
from mlrun.models.base import Model

if TYPE_CHECKING:
    from mlrun.models.network import Network

KEY = "evaluation.harness."


@dataclass(frozen=True)
class Harness(Benchmark):
    """`harness/TASK/METRIC`: what lm-eval says of a causal model, as it does of the exported folder.

    tasks: names of its tasks, or of those in the folder `include` (whose YAML may call Python functions: trust it).
    online: whether tasks may fetch their data; else it must be on this machine.
    Of tasks that score given texts. Their windows are as long as the model has positions, since lm-eval's are.
    """

    tasks: list[str] = MISSING
    include: str | None = None
    fewshot: int | None = None
    limit: int | None = None
    online: bool = False

    @property
    def _folder(self) -> str | None:
        return None if self.include is None else str(expanded(self.include))

    def problems(self) -> list[str]:
        if importlib.util.find_spec("lm_eval") is None:
            return [mistake("evaluation", "harness", "what needs no lm-eval", "or pip install 'mlrun[eval]'")]
        checks = [
            ("tasks", list(self.tasks), bool(self.tasks), "one or more names"),
            ("include", self.include, self._folder is None or Path(self._folder).is_dir(), "a folder, or null"),
            ("fewshot", self.fewshot, self.fewshot is None or self.fewshot >= 0, "null or at least 0"),
            ("limit", self.limit, self.limit is None or self.limit >= 1, "null or at least 1"),
        ]
        if found := mistakes(KEY, checks):
            return found
        try:
            _loaded(tuple(self.tasks), self._folder, self.online)
        except UserError as error:
            return error.problems
        return []

    def applies(self, model: Model) -> bool:
        return model.objective == "causal"

    def measure(self, net: Network, context: Context) -> Results:
        from lm_eval import simple_evaluate

        from mlrun.evaluate.harness_model import adapted

        manager = _loaded(tuple(self.tasks), self._folder, self.online)
        with _apart(self.online):
            found = simple_evaluate(
                adapted(net, context),
                tasks=list(self.tasks),
                num_fewshot=self.fewshot,
                limit=self.limit,
                task_manager=manager,
                log_samples=False,
            )
        assert found is not None, "this process has rank 0 of lm-eval's"
        return dict(_results(found))


def _results(found: Mapping[str, Any]) -> Iterator[tuple[str, Result]]:
    """Yield (task, result) of each metric; of metrics behind a filter the name has both."""
    for task, values in found["results"].items():
        samples = found["n-samples"].get(task, {}).get("effective")
        version = found["versions"].get(task)
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not filtered:
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            shown = metric if filtered == "none" else f"{metric}-{filtered}"
            stderr = float(error) if isinstance(error, int | float) else None
            yield f"harness/{task}/{shown}", Result(shown, float(value), stderr, samples, version)


@cache
def _loaded(tasks: tuple[str, ...], include: str | None, online: bool) -> Any:
    """Return lm-eval's manager of tasks, with which these load; UserError if one does not.

    Its own tasks are thousands of files: they are looked through only for a name that `include` does not have.
    """
    from lm_eval.tasks import TaskManager

    manager = None if include is None else TaskManager(include_path=include, include_defaults=False)
    if manager is None or set(tasks) - set(manager.all_tasks):
        manager = TaskManager(include_path=include)
    if absent := [name for name in tasks if name not in manager.all_tasks]:
        known = "a task of lm-eval, or of evaluation.harness.include"
        raise UserError([mistake(f"{KEY}tasks", name, known, "correct it") for name in absent])
    try:
        with _apart(online):
            made = manager.load(list(tasks))["tasks"]
    except Exception as error:  # a task is a user's file, and its data comes from anywhere
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "mend it" if online else "put its data on this machine, or set evaluation.harness.online=true"
        raise UserError(mistake(f"{KEY}tasks", ",".join(tasks), f"tasks that load ({reason})", remedy)) from None
    writing = [name for name, task in made.items() if task.OUTPUT_TYPE == "generate_until"]
    if writing:
        raise UserError(mistake(f"{KEY}tasks", ",".join(writing), "tasks that score given texts", "leave it out"))
    return manager


@contextmanager
def _apart(online: bool) -> Iterator[None]:
    """Leave the process as it was: lm-eval seeds all generators. Without `online` nothing is fetched."""
    import random

    import datasets
    import huggingface_hub
    import numpy as np
    import torch

    state, drawn = random.getstate(), np.random.get_state()
    with ExitStack() as stack, torch.random.fork_rng():
        if not online:
            # Both read their variables when they are imported, which is long ago.
            stack.enter_context(mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
            stack.enter_context(mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True))
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(drawn)
