"""What a person sees: a live bar on a terminal, else one fixed-width line an interval (a SLURM file)."""

from __future__ import annotations

import math
import textwrap
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TextIO

from mlrun.log.doing import Rarely, so_far
from mlrun.log.sink import Record, Sink
from mlrun.units import duration

if TYPE_CHECKING:
    from rich.progress import Progress

WIDE = 120  # columns of a terminal with room for everything
SPARKS = 32  # losses of the sparkline there; a quarter of them elsewhere
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
INTERVAL = 10.0  # seconds between two lines about training
_POSITION = {"kind", "stage", "level", "step", "tokens", "flops", "flops_body", "seconds", "branch", "probe"}


def console(plan: Mapping[str, Any], stream: TextIO) -> Lines | Bar:
    """Return the sink that suits the stream."""
    return Bar(plan, stream) if stream.isatty() else Lines(plan, stream)


class Lines(Sink):
    """Prints at most one training line an interval, and every other record; the summary is the caller's.

    What goes on between two records has a line only where it takes long (see `doing.Rarely`).
    """

    name = "the console"

    def __init__(
        self,
        plan: Mapping[str, Any],
        stream: TextIO,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pace = Pace(plan)
        self._stream, self._interval, self._clock = stream, interval, clock
        self._next = clock()  # the first training record is shown at once
        self._long = Rarely(clock)

    def write(self, record: Record) -> None:
        """Print the record if it is its turn."""
        self._pace.see(record)
        self._long.over()
        if record["kind"] == "train":
            if self._clock() < self._next:
                return
            self._next = self._clock() + self._interval
        self._print(record, what(record, self._pace))

    def doing(self, what: str, done: int, of: int | None) -> None:
        """Print how far it is, if it is time."""
        if self._pace.last is not None and self._long.due():
            self._print(self._pace.last, so_far(what, done, of))

    def _print(self, record: Record, said: str) -> None:
        print(f"{where(record, self._pace)} | {said}", file=self._stream, flush=True)

    def replan(self, plan: Record) -> None:
        """Take the rest of the plan as the run has decided it."""
        self._pace.replan(plan)


class Bar(Sink):
    """A bar over the FLOPs of the whole plan; everything but training scrolls above it."""

    name = "the console"

    def __init__(self, plan: Mapping[str, Any], stream: TextIO) -> None:
        self._pace = Pace(plan)
        self._losses: deque[float] = deque(maxlen=SPARKS)
        self._stage: int | None = None
        self._text = "starting"
        self._progress = _progress(stream)
        self._task = self._progress.add_task("", total=self._pace.total, text=self._text)
        self._progress.start()

    def write(self, record: Record) -> None:
        """Move the bar; print what is not training above it."""
        self._pace.see(record)
        if record["kind"] == "train":
            self._text = self._said(record)
        else:
            line = f"{where(record, self._pace)} | {what(record, self._pace)}"
            self._progress.console.print(wrapped(line, self._progress.console.width))
        at = place(record, self._pace)
        self._progress.update(self._task, completed=record["flops"], description=at, text=self._text)

    def doing(self, what: str, done: int, of: int | None) -> None:
        """Show how far it is, until the next record."""
        self._progress.update(self._task, text=so_far(what, done, of))

    def replan(self, plan: Record) -> None:
        """Take the rest of the plan as the run has decided it."""
        self._pace.replan(plan)
        self._progress.update(self._task, total=self._pace.total)

    def _said(self, record: Record) -> str:
        """Return what stands beside the bar: 52 columns of a narrow terminal, more of a wide one."""
        if record["stage"] != self._stage:
            self._stage = record["stage"]
            self._losses.clear()  # another level's losses stand elsewhere
        if record["loss"] is not None and math.isfinite(record["loss"]):
            self._losses.append(record["loss"])
        wide = self._progress.console.width >= WIDE
        drawn = sparkline(list(self._losses)[-(SPARKS if wide else SPARKS // 4) :])
        stage, whole = (short(seconds) for seconds in (self._pace.stage_seconds_left(), self._pace.seconds_left()))
        parts = [f"loss {number(record['loss'], '.4f')} {drawn}"]
        parts += [f"lr {number(record.get('lr'), '.2e')}"] if wide else []
        parts += [f"{thousands(record.get('tokens_per_second')).strip()} tok/s"]
        parts += [f"ETA stage {stage}, all {whole}" if wide else f"ETA {stage}/{whole}"]
        return ("  " if wide else " ").join(parts)

    def close(self, exit_code: int) -> None:
        """Leave the bar as it stands and give the terminal back."""
        self._progress.stop()


def _progress(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(file=stream, highlight=False, markup=False, soft_wrap=True),
        refresh_per_second=4,
        expand=True,
    )


def wrapped(line: str, width: int) -> str:
    """Return a line broken between words where it is longer than a terminal is wide, the rest indented."""
    parts = textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(parts)


def sparkline(values: Sequence[float]) -> str:
    """Return a character a value, from the lowest of them to the highest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    size = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / size * (len(BLOCKS) - 1))] for value in values)


def short(seconds: float | None) -> str:
    """Return a time in at most six columns: `42s`, `4m10s`, `3h05m`, `2d03h`."""
    if seconds is None:
        return "n/a"
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{below}"
    return f"{whole}s"


def place(record: Record, pace: Pace) -> str:
    """Return `stage 2/3 level 2`, `stage 3/3 branch 50%`, or `stage 2/4 probe source=copy`."""
    where = f"branch {100 * record['branch']:.4g}%" if "branch" in record else f"level {record['level']}"
    where = f"probe {record['probe']}" if "probe" in record else where
    return f"stage {record['stage'] + 1}/{pace.stages} {where}"


def where(record: Record, pace: Pace) -> str:
    """Return where a record stands in the plan, in columns."""
    done = 100 * record["flops"] / pace.total
    return f"{place(record, pace)} | {done:5.1f}% | step {record['step']:>7}"


def what(record: Record, pace: Pace) -> str:
    """Return what a record says, in columns."""
    match record["kind"]:
        case "train":
            return " | ".join(_train(record, pace))
        case "val":
            return " | ".join([f"val  {number(record['loss'], '7.4f')}", *_measured(record)])
        case "transfer":
            return _transfer(record)
        case "health":
            return " | ".join(["layers", *(_extreme(record, quantity) for quantity in ("gradient", "logit", "gain"))])
        case kind:
            return _fact(record, kind)


def _fact(record: Record, kind: str) -> str:
    """Return a decision, a start, or a record of any other kind."""
    if kind == "decision":
        return f"{record['decided']} {record.get('kept', '')}".rstrip() + f": {record['reason']}"
    if kind == "stage":
        return f"stage done in {short(record['stage_seconds'])}"
    if kind == "start":
        return f"start: {record['processes']} x {record['gpu'] or record['processor']} on {record['host']}"
    said = ", ".join(f"{key} {_short(value)}" for key, value in record.items() if key not in _POSITION)
    return f"{kind}: {said}" if said else f"{kind}"


def _train(record: Record, pace: Pace) -> list[str]:
    return [
        f"loss {number(record['loss'], '7.4f')}",
        f"lr {number(record.get('lr'), '.2e')}",
        f"{thousands(record.get('tokens_per_second'))} tok/s",
        f"ETA {duration(pace.seconds_left()):>8}",
    ]


def _extreme(record: Record, quantity: str) -> str:
    """Return in which layer a quantity is the largest, a gain the least; what is not finite is null in files."""
    known = {name: value for name, value in record[quantity].items() if value is not None}
    if not known:
        return f"no {quantity}"
    word, choose = ("least", min) if quantity == "gain" else ("largest", max)
    name = choose(known, key=lambda one: known[one])
    return f"{word} {quantity} {number(known[name], '.3g')} in {name}"


def _measured(record: Record) -> list[str]:
    """Return what was measured beside the held-out loss where a stage ends: a number a task, none of its parts."""
    results = {task: one["value"] for task, one in record.get("results", {}).items() if "/" not in task}
    known = ("held_out", "ema_")
    return [f"{task} {number(value, '.4g')}" for task, value in results.items() if not task.startswith(known)]


def _transfer(record: Record) -> str:
    before, after = number(record["loss_before"], ".4f"), number(record["loss_after"], ".4f")
    change = number(record["relative_logit_change"], ".1e")
    tolerance = record["tolerance"]
    promise = f"exact within {tolerance:.0e}" if tolerance is not None else "not promised exact"
    alpha = "" if record.get("alpha") is None else f", alpha {record['alpha']:g}"
    return f"{record['operator']}{alpha}: loss {before} -> {after}, logits moved {change} ({promise})"


def number(value: float | None, form: str) -> str:
    """Return a number in columns, or n/a as wide."""
    width = len(format(1.0, form))
    return "n/a".rjust(width) if value is None else format(value, form)


def thousands(value: float | None) -> str:
    """Return a rate in six columns: ` 512.0`, ` 12.3k`, `  4.5M`."""
    if value is None:
        return "   n/a"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:5.1f}{unit}"
    return f"{value:6.1f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Pace:
    """Measures FLOP/s per level from the records and predicts the rest of the plan.

    A coarse level has fewer FLOP/s than a fine one on the same machine, so one average would mislead.
    """

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.replan(plan)
        self._flops: dict[int, float] = defaultdict(float)
        self._seconds: dict[int, float] = defaultdict(float)
        self.last: Record | None = None

    def replan(self, plan: Mapping[str, Any]) -> None:
        """Take another plan of what is left; what was measured stays."""
        self._stages: list[Mapping[str, Any]] = plan["stages"]
        self._ends = list(accumulate(stage["flops"] for stage in self._stages))

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self._stages)

    @property
    def total(self) -> float:
        """FLOPs of the whole plan."""
        return self._ends[-1]

    def see(self, record: Record) -> None:
        """Take one record; spans across a stage change count for no level."""
        last, self.last = self.last, record
        if last is not None and last["stage"] == record["stage"]:
            self._flops[record["level"]] += record["flops"] - last["flops"]
            self._seconds[record["level"]] += record["seconds"] - last["seconds"]

    def seconds_left(self) -> float | None:
        """Return the training seconds that the rest of the plan will take; None before any is measured.

        A level that has not run yet is taken to run at the average FLOP/s of those that have.
        """
        overall = _rate(sum(self._flops.values()), sum(self._seconds.values()))
        if self.last is None or overall is None:
            return None
        return sum(flops / (self._level_rate(level) or overall) for level, flops in self._left(self.last))

    def stage_seconds_left(self) -> float | None:
        """Return the training seconds that the current stage will still take; None before any is measured."""
        overall = _rate(sum(self._flops.values()), sum(self._seconds.values()))
        if self.last is None or overall is None:
            return None
        level, flops = self._left(self.last)[0]
        return flops / (self._level_rate(level) or overall)

    def _level_rate(self, level: int) -> float | None:
        return _rate(self._flops[level], self._seconds[level])

    def _left(self, record: Record) -> list[tuple[int, float]]:
        """Return (level, FLOPs still to spend) for the current stage and the later ones."""
        now = record["stage"]
        current = max(0.0, self._ends[now] - record["flops"])
        later = [(stage["level"], stage["flops"]) for stage in self._stages[now + 1 :]]
        return [(record["level"], current), *later]


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 and amount > 0 else None
