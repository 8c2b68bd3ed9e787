"""What listens to a run, and the promise that listening never ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Record = Mapping[str, Any]

AXES = ("flops", "tokens", "step", "seconds")
POSITION = (*AXES, "flops_body", "stage", "level")  # of every record


class Sink:
    """One listener; this one does nothing, others say what they do."""

    name = "a listener"

    def write(self, record: Record) -> None:
        """Take one record."""

    def doing(self, what: str, done: int, of: int | None) -> None:
        """Take how far an evaluation or a transfer is, in pieces of work; this comes often, and is no record."""

    def replan(self, plan: Record) -> None:
        """Take the plan anew, as a run that decides on its way (`cycle=auto`) has changed it."""

    def finish(self, summary: Record) -> None:
        """Take the summary of a run that came to its end."""

    def close(self, exit_code: int) -> None:
        """Let go of everything held; exit code 0 means success."""

    def fail(self) -> str:
        """Let go without waiting, after a call failed; return how to get what is missing."""
        return "log.jsonl has all records"


class Logger(Protocol):
    """What the `_target_` in conf/logger/*.yaml must be: settings that can start a sink."""

    def problems(self) -> list[str]:
        """Return one line per wrong setting."""

    def start(self, run_folder: Path, config: Record, plan: Record, keep: int) -> Sink:
        """Start listening to one run, or raise UserError.

        `keep` is the length of the log that a resumed run goes on with, 0 for a new one. A listener with files of its
        own writes them anew from these records (`jsonl.records`): what came after them will come again.
        """


class Guarded(Sink):
    """A listener that cannot end the training: after its first failure it warns once and is told nothing more."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._broken = False
        self._step = 0

    @property
    def broken(self) -> bool:
        """True if the listener misses records."""
        return self._broken

    def write(self, record: Record) -> None:
        """Pass the record on."""
        self._step = record["step"]
        self._try(self._sink.write, record)

    def doing(self, what: str, done: int, of: int | None) -> None:
        """Pass on how far it is."""
        self._try(self._sink.doing, what, done, of)

    def replan(self, plan: Record) -> None:
        """Pass the plan on."""
        self._try(self._sink.replan, plan)

    def finish(self, summary: Record) -> None:
        """Pass the summary on."""
        self._try(self._sink.finish, summary)

    def close(self, exit_code: int) -> None:
        """Close the listener; if it is broken, say how to get what it misses."""
        self._try(self._sink.close, exit_code)
        if self._broken:
            _say(f"{self._sink.name} misses records; {self._sink.fail()}")

    def _try(self, action: Callable[..., None], *args: object) -> None:
        if self._broken:
            return
        try:
            action(*args)
        except Exception as error:
            self._broken = True
            reason = " ".join(str(error).split()) or type(error).__name__
            _say(f"{self._sink.name} stopped at step {self._step} ({reason}); training goes on")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def series(record: Record) -> dict[str, Any]:
    """Return a record as named values: positions as they are, the rest as `kind/name`.

    Evaluations are `eval/name`. Those of coarser levels are series of their own, such as `eval/level2/loss`: the last
    of one level and the first of the next stand at the same step, where one name would keep only one of them. So is
    everything of a branch, which is no part of the run's own curves: `eval/branch50/loss` for the one that ends at half
    of the budget, and of a probe by its name. What a start says are facts and no curve: only its position is left. The
    `results` of an evaluation say more of numbers that are there. What is known of the layers has a section for each
    quantity, with a panel for each layer: `health_gradient/blocks.0`.
    """
    kind, level = record["kind"], record["level"]
    if kind == "health":
        return _of_layers(record)
    prefix = "eval" if kind == "val" else kind
    if "branch" in record:
        prefix += f"/branch{100 * record['branch']:.4g}"
    elif "probe" in record:
        prefix += f"/probe {record['probe']}"
    elif kind == "val" and level > 1:
        prefix += f"/level{level}"
    named = {key: value for key, value in record.items() if key not in ("kind", "branch", "probe", "results")}
    if kind == "start":
        named = {key: value for key, value in named.items() if key in POSITION}
    return {key if key in POSITION else f"{prefix}/{key}": value for key, value in named.items()}


def _of_layers(record: Record) -> dict[str, Any]:
    """Return a record of health as named values; coarser levels and branches are series of their own."""
    of = f"_level{record['level']}" if record["level"] > 1 else ""
    of = f"_branch{100 * record['branch']:.4g}" if "branch" in record else of
    named: dict[str, Any] = {key: value for key, value in record.items() if key in POSITION}
    for quantity, layers in record.items():
        if isinstance(layers, Mapping):
            named |= {f"health{of}_{quantity}/{name}": value for name, value in layers.items()}
    return named | {f"health{of}/flops": record["health_flops"]}
