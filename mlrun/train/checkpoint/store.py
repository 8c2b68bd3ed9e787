"""The state of a run on disk, replaced as a whole; the one before is kept. No pickle.

It is one safetensors file, or a folder where every process holds shards (see `sharded.py`); any run reads either.

current/weights/<name>  current/exp_avg/<name> ...   the model in training and its optimizer
kept/<level>/...                                     the models that wait for their decoalesced return
record                                               progress, and the optimizer's steps; the checksum covers it

What a branch starts from is a checkpoint of its own with `current` alone. Names and rotation are in `layout.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlrun import files
from mlrun.errors import UserError
from mlrun.plan.deciding import Plans
from mlrun.plan.stages import Plan
from mlrun.train.checkpoint import layout, sharded, tensor_files
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Progress, Snapshot, as_record, flat, nested, read_progress, refuse_others

ALONE = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. All of its processes call each method, and fail together.

    `plans` gives its plan, which follows from what it has decided.
    """

    folder: Path
    plans: Plans
    ranks: Ranks = ALONE

    def begin(self) -> str | None:
        """Make the folder of a run that has no checkpoint; return a line if it was begun before.

        Raises:
            UserError: it had checkpoints, and they are gone.
        """
        return self.ranks.together(lambda: self._begin() if self.ranks.first else None)[0]

    def _begin(self) -> str | None:
        log, summary = self.folder.with_name(files.LOG), self.folder.with_name(files.SUMMARY)
        stage, step = _reached(log)
        if (stage > 0 or not self.folder.is_dir()) and (log.exists() or summary.exists()):
            there = log if log.exists() else summary
            remedy = f"restore {self.folder}, or start a new folder with run=..., or remove {there} to start over"
            raise UserError(f"{there}: this run was begun and its checkpoints are gone; {remedy}")
        self.folder.mkdir(exist_ok=True)
        return f"{log}: no checkpoint was due before the run ended after step {step}; it starts over" if step else None

    def save(self, progress: Progress, current: Snapshot, kept: Mapping[int, Snapshot]) -> None:
        """Write the run's state as the newest checkpoint; the former newest stays beside it.

        Raises:
            OSError: it cannot be written; the checkpoints are as they were.
        """
        tensors, steps = flat(current, kept)
        record = {"progress": as_record(progress), "optimizer_steps": steps}
        self._write(layout.LAST, tensors, record, layout.install_newest)

    def save_fork(self, step: int, snapshot: Snapshot) -> None:
        """Write the state after `step`, which a branch starts from; raises as `save` does."""
        tensors, steps = flat(snapshot, {})
        self._write(layout.FORK.format(step), tensors, {"optimizer_steps": steps}, layout.install)

    def _write(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        record: Mapping[str, Any],
        install: Callable[[Path, Path], None],
    ) -> None:
        if self.ranks.placement.collective:
            sharded.write(self.folder / f"{name}{layout.SHARDED}", tensors, record, self.ranks, install)
            return
        path, metadata = self.folder / f"{name}{layout.WHOLE}", {key: json.dumps(record[key]) for key in record}
        self.ranks.by_first(lambda: tensor_files.write(path, tensors, metadata, install))

    def load(self) -> tuple[Progress, Plan, Snapshot, dict[int, Snapshot], str | None] | None:
        """Return the newest whole checkpoint with the plan as decided by then, and what was wrong with a newer one.

        None if there is no checkpoint.

        However it was written, its tensors are what this process keeps of them.

        Raises:
            UserError: checkpoints are there and none is whole.
        """
        problems: list[str] = []
        for path in layout.present(self.folder, layout.LAST, layout.BEFORE):
            try:
                progress, plan, current, kept = self._unpacked(path, *self._read(path, tensor_files.REMEDY))
            except UserError as error:
                problems += error.problems
                continue
            return progress, plan, current, kept, problems[0] if problems else None
        if problems:
            raise UserError(problems)
        return None

    def load_fork(self, step: int) -> Snapshot:
        """Return what this process keeps of the state that a branch starts from.

        Raises:
            UserError: the file is missing or damaged.
        """
        name, remedy = layout.FORK.format(step), "a branch starts from it: restore the file, or start a new folder"
        path = next(iter(layout.present(self.folder, name)), self.folder / f"{name}{layout.WHOLE}")
        tensors, record = self._read(path, f"{remedy} with run=...")
        try:
            return nested(tensors, record.get("optimizer_steps"))[0]
        except ValueError as error:
            raise UserError(f"{path}: {error}; {remedy} with run=...") from None

    def _read(self, path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what this process keeps of the tensors, and the record beside them."""
        if path.is_dir():
            return sharded.read(path, self.ranks, remedy)
        tensors: dict[str, Tensor] = {}

        def step() -> dict[str, str]:
            found, metadata = tensor_files.read(path, self.ranks.placement.shard, remedy)
            tensors.update(found)
            return metadata

        metadata = self.ranks.together(step)[0]
        try:
            return tensors, {key: json.loads(value) for key, value in metadata.items() if key != "sha256"}
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None

    def _unpacked(
        self, path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
    ) -> tuple[Progress, Plan, Snapshot, dict[int, Snapshot]]:
        try:
            progress, plan = read_progress(record.get("progress"), self.plans)
            current, kept = nested(tensors, record.get("optimizer_steps"))
            refuse_others(progress, plan, current, kept, not self.ranks.placement.collective)
        except ValueError as error:
            raise UserError(f"{path}: {error}; {tensor_files.REMEDY}") from None
        return progress, plan, current, kept

    def last_good(self, step: int) -> str:
        """Return in words where the newest checkpoint is, that of a step, if there is one."""
        newest = next(iter(layout.present(self.folder, layout.LAST)), None)
        if newest is None:
            return "no checkpoint was due before that"
        return f"the last good checkpoint is {newest}, of step {step}"

    def save_best(self, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write the weights of the lowest held-out loss so far; raises as `save_weights` does."""
        save_weights(self.folder / layout.BEST, weights, metadata, self.ranks)

    def drop_forks(self) -> None:
        """Remove what no branch will start from any more."""
        self.ranks.by_first(lambda: layout.drop_forks(self.folder))


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], ranks: Ranks) -> None:
    """Write a model's weights as one file, as a whole; all processes call it.

    Raises:
        OSError, UserError: it cannot be written, or the disk has no room.
    """
    if ranks.placement.collective:
        sharded.write_whole(path, weights, metadata, ranks)
    else:
        ranks.by_first(lambda: tensor_files.write(path, weights, metadata))


def _reached(log: Path) -> tuple[int, int]:
    """Return the stage and step of the last record of a log that can be read, (0, 0) if there is none."""
    reached = 0, 0
    for line in log.read_bytes().splitlines() if log.exists() else ():
        try:
            record = json.loads(line)
            reached = int(record["stage"]), int(record["step"])
        except (ValueError, RecursionError, TypeError, KeyError):
            continue
    return reached
