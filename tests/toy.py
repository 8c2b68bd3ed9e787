"""A tiny run for tests: a Markov language held in memory, a small GPT, two levels; seconds on one core."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mlrun.config.load import Config
from mlrun.config.settings import Auto, Checkpoint, Cycle, Eval, Row, Schedule, Settings
from mlrun.data.text import documents
from mlrun.evaluate.held_out import HeldOut
from mlrun.models import vocabulary_loss
from mlrun.models.base import IGNORED
from mlrun.models.gpt import GPT
from mlrun.models.network import Network
from mlrun.multilevel.coarsening.shallow import Shallow
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth.decoalesce import Decoalesce
from mlrun.multilevel.growth.fresh import Fresh
from mlrun.plan.auto import Decision
from mlrun.plan.make import make_plan
from mlrun.plan.stages import Plan
from mlrun.run import train
from mlrun.train import loop
from mlrun.train.optimizers.adamw import AdamW

WORDS, SEQUENCE = 32, 16
# The same for the command line, with the embedded speeches.
SMALL = [
    "data.sequence=32", "model.position=32", "model.embed=32", "model.head=2", "model.head_dim=16", "model.ffn=64",
    "model.layer=2", "batch=8", "log_every=1", "hardware.threads=1",
]  # fmt: skip
V_CYCLE = (Row(1, "20%"), Row(2, "40%"), Row(1, "50%"))
# The V-cycle with two branches of three steps each, from steps 15 and 17 of 22.
BRANCHED: dict[str, Any] = {
    "cycle": Cycle(name="2level", stages=list(V_CYCLE), branches=["62%", "71%"]),
    "optimizer": AdamW(lr=1e-2, ema=0.9, schedule=Schedule(shape="wsd", warmup="2 steps", decay="3 steps")),
}

# Growing in depth when the run decides to, after two probes of two steps and with a branch; it grows at the first look
# that gives a slope.
PROBES: tuple[Any, ...] = (Fresh(source="copy", noise=0.5), Fresh())
DECIDING: dict[str, Any] = {
    "coarsening": Shallow(layers=1),
    "growth": Fresh(),
    "probes": PROBES,
    "optimizer": AdamW(lr=1e-2, ema=0.9, schedule=Schedule(shape="wsd", warmup="2 steps", decay="3 steps")),
    "eval": Eval(every="1 step", batch=8),
    "cycle": Cycle(
        name="auto",
        stages=[Row(2, "auto"), Row(1, "rest")],
        optimizer_policy="carry",
        lr_policy="continue",
        branches=["90%"],
        auto=Auto("4 steps", 100.0, [{"source": "copy", "noise": 0.5}, {"source": "random"}], "2 steps"),
    ),
}


@dataclass(frozen=True)
class Toy:
    """Sequences of a fixed Markov chain; sample `i` depends on the seed and `i` alone.

    `ragged`: sample i has (5 * i) modulo (sequence + 1) labels, so that some have none and one has all.
    `apart`: every small word ends a document, and documents are kept apart.
    """

    sequence: int = SEQUENCE
    ragged: bool = False
    apart: bool = False

    def targets(self, model: Any) -> int:
        return self.sequence

    def sequences(self, model: Any) -> dict[int, int]:
        return {self.sequence: 1, self.sequence // 2: 2, self.sequence // 4: 4}

    def problems(self, model: Any) -> list[str]:
        return []

    def open(self, model: Any, seed: int, cache: str, batch: int = 1) -> Source:
        return Source(seed, self.sequence, self.ragged, apart=self.apart)


@dataclass
class Source:
    seed: int
    sequence: int
    ragged: bool = False
    samples: int | None = None
    apart: bool = False
    pieces: int = 1

    def in_pieces(self, pieces: int) -> Source:
        return replace(self, pieces=pieces)

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[dict[str, Tensor]]:
        while True:
            whole = self._batch(self.seed, range(start // self.pieces, (start + size) // self.pieces))
            yield {key: t.reshape(size, -1)[slice(None) if rows is None else rows] for key, t in whole.items()}
            start += size

    def validation(self, size: int) -> Iterator[dict[str, Tensor]]:
        for first in range(0, 16, size):
            yield self._batch(10**6, range(first, min(first + size, 16)))

    def _batch(self, seed: int, indices: range) -> dict[str, Tensor]:
        batch = _batch([_sample(seed, i, self.sequence) for i in indices])
        for row, index in enumerate(indices if self.ragged else ()):
            batch["labels"][row, 5 * index % (self.sequence + 1) :] = IGNORED
        return _apart(batch) if self.apart else batch

    def describe(self) -> dict[str, Any]:
        return {"name": "toy"}

    def model_files(self) -> dict[str, str]:
        return {}


def _sample(seed: int, index: int, length: int) -> np.ndarray:
    drawn = np.random.default_rng([seed, index]).integers(0, 3, length + 1)
    words = [int(drawn[0])]
    for draw in drawn[1:]:
        words.append((words[-1] * 5 + int(draw) + 1) % WORDS)
    return np.array(words)


def _batch(rows: list[np.ndarray]) -> dict[str, Tensor]:
    words = torch.from_numpy(np.stack(rows))
    tokens, labels = words[:, :-1].contiguous(), words[:, 1:].clone()
    return {"tokens": tokens, "positions": torch.arange(tokens.shape[1]).expand_as(tokens), "labels": labels}


def _apart(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    numbers = documents.numbers(batch["tokens"].numpy() < WORDS // 5)
    return batch | {"documents": torch.from_numpy(numbers), "places": torch.from_numpy(documents.places(numbers))}


__all__ = ["Checkpoint", "Toy"]


def model() -> GPT:
    return GPT(vocab=WORDS, position=SEQUENCE, embed=32, head=4, head_dim=8, ffn=64, layer=2)


def settings(**changes: Any) -> Settings:
    """Return settings of a 20-step budget; `changes` replace fields of Settings."""
    base: dict[str, Any] = {
        "name": "toy",
        "budget": "20 steps",
        "batch": 8,
        "cache": "unused",
        "log_every": 1,
        "cycle": Cycle(name="2level", stages=list(V_CYCLE)),
        "eval": Eval(every="20%", batch=8),
    }
    return Settings(**{**base, **changes})


def make(
    coarsening: Any = None,
    model: Any = None,
    growth: Any = None,
    optimizer: Any = None,
    data: Any = None,
    probes: tuple[Any, ...] = (),
    **changes: Any,
) -> Config:
    """Return a checked configuration of the toy run."""
    return Config(
        settings(**changes),
        model=globals()["model"]() if model is None else model,
        coarsening=Uniform(width=2, ffn=2, head=2, depth=2) if coarsening is None else coarsening,
        growth=Decoalesce() if growth is None else growth,
        data=Toy() if data is None else data,
        optimizer=AdamW(lr=1e-2, schedule=Schedule(warmup="10%")) if optimizer is None else optimizer,
        logger={},
        evaluation={"held_out": HeldOut()},
        resolved={"model": {"_target_": "mlrun.models.gpt.GPT"}, "changes": repr(changes)},
        probes=probes,
    )


def plans(config: Config) -> Callable[[Sequence[Decision]], Plan]:
    """Return what a run's checkpoints know of its plan: what it is after some decisions."""
    return lambda decisions: make_plan(config, decisions=decisions)


def run(folder: Path, config: Config) -> dict[str, Any]:
    """Train a configuration in a folder and return its summary."""
    return train(config, make_plan(config), folder)


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the log without its timings and starts, the only part that differs between equal runs."""
    timings = ("seconds", "own_seconds", "stage_seconds", "tokens_per_second")
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    kept = (line for line in lines if line["kind"] != "start")
    return [{key: value for key, value in line.items() if key not in timings} for line in kept]


def starts(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run's starts."""
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "start"]


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the trained weights of a run."""
    return load_file(folder / "model" / "model.safetensors")


def at_event(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None], kind: type | None = None) -> None:
    """Act when the first event of the loop is due at or after a step, before the run answers it; once."""
    real, acted = loop.train, False

    def train(*args: Any) -> Iterator[loop.Event]:
        nonlocal acted
        for event in real(*args):
            if not acted and event.step >= step and (kind is None or isinstance(event, kind)):
                acted = True
                act()
            yield event

    monkeypatch.setattr(loop, "train", train)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a signal to stop, when the first event is due at or after a step."""
    at_event(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGUSR2))


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the gradients of some steps NaN."""
    real = loop.train

    def train(job: Any, stage: Any, trainee: Any, batches: Iterator[Any], start: int, owed: bool) -> Iterator[Any]:
        taken = start

        def counted() -> Iterator[Any]:
            nonlocal taken
            for batch in batches:
                taken += 1
                yield batch

        first = next(trainee.net.parameters())
        first.register_hook(lambda gradient: torch.full_like(gradient, torch.nan) if taken in steps else gradient)
        yield from real(job, stage, trainee, counted(), start, owed)

    monkeypatch.setattr(loop, "train", train)


def memory_for(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let memory run out where a network trains on more samples at a time than so many."""
    real = Network.forward

    def forward(net: Network, batch: dict[str, Tensor]) -> Tensor:
        if net.training and len(batch["tokens"]) > count:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(net, batch)

    monkeypatch.setattr(Network, "forward", forward)


def in_chunks(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Take every loss of a training step in chunks of so many rows; return a list that gets the rows of each loss."""
    taken: list[int] = []
    real = vocabulary_loss.total

    @torch.compiler.disable
    def total(x_NE: Tensor, *rest: Any) -> Tensor:
        taken.append(len(x_NE))
        return real(x_NE, *rest)

    monkeypatch.setattr(vocabulary_loss, "WHOLE", 0)
    monkeypatch.setattr(vocabulary_loss, "rows_of_a_chunk", lambda *_: rows)
    monkeypatch.setattr(vocabulary_loss, "total", total)
    return taken


def samples_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every training sample that is read from now on adds its index."""
    read: list[int] = []
    real = _sample

    def sample(seed: int, index: int, length: int) -> Any:
        if seed == 0:
            read.append(index)
        return real(seed, index, length)

    monkeypatch.setattr(sys.modules[__name__], "_sample", sample)
    return read
