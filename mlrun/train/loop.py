"""The one training loop. Knows networks, batches and numbers; no configuration framework."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlrun.config.settings import Hardware, Settings
from mlrun.models.base import Model
from mlrun.models.dropout import seed_masks
from mlrun.models.network import Network, blocks
from mlrun.plan import schedule
from mlrun.plan.stages import Plan, Stage
from mlrun.train import compiled, memory
from mlrun.train.clock import Clock
from mlrun.train.copying import moved
from mlrun.train.divergence import Diverged, Guard
from mlrun.train.layer_dropout import LayerDropout
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.parallel.placement import Placement, local
from mlrun.train.parallel.processes import Ranks
from mlrun.train.signals import NOTHING, STOP, Signals, Stopped
from mlrun.train.snapshot import Snapshot
from mlrun.train.stage_loss import StageLoss

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Job:
    """What every stage shares."""

    plan: Plan
    settings: Settings
    ranks: Ranks
    clock: Clock
    write: Callable[[dict[str, Any]], None]
    signals: Signals
    fit: memory.Fit

    def pause(self) -> None:
        """Raise Stopped if a signal asks any process to stop; all of them call it, in between two pieces of work."""
        if self.ranks.most(self.signals.asked) == STOP:
            raise Stopped("stopped by a signal")


@dataclass(frozen=True)
class Trainee:
    """What one stage trains: the network, its optimizer, and the moving average of its weights, if asked for.

    `stage_loss` gives the loss where that is not the network's own (see `mlrun.train.stage_loss`).
    """

    net: Network
    optimizer: Stepping
    ema: dict[str, Tensor] | None
    stage_loss: StageLoss | None = None

    def at_step(self, step: int, lr: float) -> None:
        """Prepare a step of the run."""
        self.optimizer.set_rate(lr)
        if self.stage_loss is not None:
            self.stage_loss.at_step(step)

    def at_rest(self, placement: Placement) -> Snapshot:
        """Return copies on the CPU of everything that the stage trains, as this process holds it."""
        state, taken = self.optimizer.state()
        kinds: dict[str, Any] = {"weights": self.net.state_dict(), **state}
        if self.ema is not None:
            kinds["ema"] = self.ema
        return Snapshot({kind: {n: placement.to_cpu(t) for n, t in ts.items()} for kind, ts in kinds.items()}, taken)


@dataclass(frozen=True)
class Evaluate:
    """The held-out set is due after `step` steps."""

    step: int


@dataclass(frozen=True)
class Fork:
    """A branch starts from the state after `step` steps."""

    step: int


@dataclass(frozen=True)
class Save:
    """A checkpoint is due after `step` steps; `asked` says what a signal asked for (see `mlrun.train.signals`)."""

    step: int
    asked: int


Event = Evaluate | Fork | Save


def train(
    job: Job, stage: Stage, trainee: Trainee, batches: Iterator[Batch], start: int, owed: bool = False
) -> Iterator[Event]:
    """Train one stage from step `start` of the run to its end, and yield what is due on the way, in its order.

    Args:
        batches: this process's rows of the global batches, the next one being that of step `start`.
        owed: the evaluation before the first step is still due.

    Raises:
        Diverged: the loss or the gradient is not finite, and with `skip` in too many steps on end.
        Stopped: a signal came; a `Save` was yielded.
    """
    settings, ranks, spec = job.settings, job.ranks, trainee.optimizer.optimizer
    forward = _prepare(trainee, stage, settings.hardware, ranks)
    parameters = list(trainee.net.parameters())
    layers = None if stage.fade is None else LayerDropout(trainee.net, stage, settings.seed)
    evaluate_every = schedule.due(job.plan, stage, settings.eval.every)
    save_every = schedule.due(job.plan, stage, settings.checkpoint.every)
    guard = Guard(settings.on_divergence, ranks.device)
    if owed:
        yield Evaluate(start)
        yield from _saves(job, guard, start, False)
    logged_at, logged_step = job.clock.read()["training"], start
    for step in range(start, stage.end):
        # The rate depends on the step alone, so a resumed run takes the same one.
        lr = schedule.rate(job.plan, spec, settings.cycle.lr_policy, stage, step)
        trainee.at_step(step, lr)

        # The global batch is the same whatever the hardware: processes and micro-batches only cut it up. Each part
        # has masks of its own, which a resumed run makes again; which layers a sample leaves out is the batch's.
        drop = _dropping(settings.seed, step, ranks, layers)
        loss = job.fit.gradients(_pass(job, stage, step, trainee, forward, next(batches), drop))

        # Clipping also measures the norm; without a limit it only measures.
        limit = spec.clip if spec.clip is not None else math.inf
        norm = ranks.placement.gather(nn.utils.clip_grad_norm_(parameters, limit))
        done = step + 1
        skipped = guard.leaves_out(norm, done)
        if not skipped:
            trainee.optimizer.step()
            if trainee.ema is not None and spec.ema is not None:
                _average(trainee.ema, trainee.net, _decay(job.plan, stage, step, spec.ema))
        trainee.optimizer.zero_grad()

        if skipped:
            job.write(record(job, stage, done, "train", loss=math.nan, lr=lr, grad_norm=math.nan, skipped=True))
        elif done % settings.log_every == 0 or done == stage.end:
            values = ranks.sum(loss / ranks.world).item(), float(norm)
            seconds = job.clock.read()["training"]
            tokens = (done - logged_step) * stage.samples.batch * stage.samples.tokens
            if not all(map(math.isfinite, values)):
                raise Diverged(f"loss {values[0]} and gradient norm {values[1]} at step {done}")
            job.write(
                record(job, stage, done, "train", loss=values[0], lr=lr, grad_norm=values[1])
                | {"tokens_per_second": tokens / max(seconds - logged_at, 1e-9)}
            )
            logged_at, logged_step = seconds, done

        if done == stage.end or (done % evaluate_every == 0 and stage.in_trunk):
            yield Evaluate(done)
        if done in job.plan.forks:
            guard.check(done)
            yield Fork(done)
        yield from _saves(job, guard, done, done % save_every == 0 and done != stage.end)


def _saves(job: Job, guard: Guard, done: int, due: bool) -> Iterator[Event]:
    """Yield a save if one is due or asked for by a signal; then stop if that was asked for."""
    asked = job.ranks.most(job.signals.asked)
    if asked != NOTHING or due:
        guard.check(done)
        yield Save(done, asked)
        job.signals.answered(asked)
    if asked == STOP:
        raise Stopped(f"stopped by a signal after step {done}")


def record(job: Job, stage: Stage, step: int, kind: str, **values: Any) -> dict[str, Any]:
    """Return one log record: where the run stands, all cumulative, and what is reported."""
    spent = job.plan.spent(step, stage.index)
    aside: dict[str, Any] = {} if stage.ending is None else {"branch": stage.ending}
    if stage.probe is not None:
        aside = {"probe": job.plan.probes[stage.probe]}
    return {
        "kind": kind,
        "stage": stage.index,
        "level": stage.level,
        "step": step,
        "tokens": spent.tokens,
        "flops": spent.flops,
        "flops_body": spent.flops_body,
        "seconds": job.clock.read()["training"],
        **aside,
        **values,
    }


def autocast(hardware: Hardware, device: torch.device) -> torch.autocast:
    """Return the context that computes in the hardware's precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=hardware.precision == "bf16")


def _prepare(trainee: Trainee, stage: Stage, hardware: Hardware, ranks: Ranks) -> nn.Module:
    """Return the module to call: wrapped for several processes, and compiled if the hardware says so."""
    module: nn.Module = (trainee.net if trainee.stage_loss is None else trainee.stage_loss).train()
    if hardware.compile:
        known = (type(module), trainee.net.model, stage.samples.batch, stage.samples.sequence)
        compiled.begin(known, _graphs(trainee.net, ranks))
    if ranks.placement.collective:
        if hardware.compile:
            for block in blocks(trainee.net):
                # Only what is computed: gathering and freeing shards happens around it.
                block.forward = compiled.code(block.forward)  # type: ignore[method-assign]
        return module
    if ranks.world > 1:
        device = [ranks.device.index] if ranks.device.type == "cuda" else None
        unused = trainee.stage_loss is not None and trainee.stage_loss.partial
        module = DistributedDataParallel(module, device_ids=device, find_unused_parameters=unused)
    return compiled.code(module) if hardware.compile else module


def _graphs(net: Network, ranks: Ranks) -> int:
    """Return how many graphs a stage may need: of the whole one more where memory runs out and halves a micro-batch.

    Blocks of shards are compiled by themselves, each kind once, and evaluated so too, at two sizes of a batch.
    """
    kinds = {tuple((name, p.shape) for name, p in block.named_parameters()) for block in blocks(net)}
    return 3 * len(kinds) if ranks.placement.collective else 2


def _pass(
    job: Job,
    stage: Stage,
    step: int,
    trainee: Trainee,
    forward: nn.Module,
    batch: Batch,
    drop: Callable[[range, int], None],
) -> memory.Pass:
    """Return the gradients of a step as a function of the micro-batch; the trial leaves DDP and its processes out."""
    hardware, ranks, model = job.settings.hardware, job.ranks, trainee.net.model
    alone: nn.Module = trainee.net if trainee.stage_loss is None else trainee.stage_loss

    def attempt(size: int) -> Tensor:
        return _gradients(forward, model, batch, size, hardware, ranks, drop)

    def trial(size: int) -> None:
        drop(range(min(size, samples(batch))), samples(batch))
        part = {key: value[:size].to(ranks.device) for key, value in batch.items()}
        with autocast(hardware, ranks.device):
            loss = alone(part)
        torch.autograd.grad(loss, [p for p in alone.parameters() if p.requires_grad], allow_unused=True)

    def halved(size: int) -> None:
        job.write(record(job, stage, step, "micro_batch", samples=size))

    return memory.Pass(stage.level, samples(batch), attempt, trial, trainee.optimizer.zero_grad, halved)


def micro_batches(model: Model, batch: Batch, size: int | None, ranks: Ranks) -> Iterator[tuple[int, Batch, float]]:
    """Yield (first row, rows on the device, weight) of each micro-batch of this process's rows; None is all of them.

    The weighted mean losses, summed over micro-batches and averaged over processes, are the mean over the labels of
    the global batch, however it is cut up.
    """
    rows, labels = samples(batch), max(1, ranks.total(model.label_count(batch)))
    size = min(size or rows, rows)
    for first in range(0, rows, size):
        part = {key: value[first : first + size] for key, value in batch.items()}
        weight = model.label_count(part) * ranks.world / labels
        yield first, moved(part, ranks.device), weight


def _dropping(seed: int, step: int, ranks: Ranks, layers: LayerDropout | None) -> Callable[[range, int], None]:
    """Return what says what a micro-batch of a step drops: some rows of the `mine` that this process has of it."""
    if layers is not None:
        layers.at_step(step)

    def drop(rows: range, mine: int) -> None:
        seed_masks(seed, step, ranks.rank, rows.start)
        if layers is not None:
            layers.take(ranks.rank * mine + rows.start, len(rows), ranks.device)

    return drop


def _gradients(
    forward: nn.Module,
    model: Model,
    batch: Batch,
    size: int,
    hardware: Hardware,
    ranks: Ranks,
    drop: Callable[[range, int], None],
) -> Tensor:
    """Accumulate the gradient of the mean loss; return this process's share of that loss, detached.

    `size` is the micro-batch. `drop` is told the rows of each, and how many there are, before its forward pass. DDP
    sums over the processes once, with the last one. Shards are summed with each: to wait would mean to hold the
    gradient whole.
    """
    total = torch.zeros((), device=ranks.device)
    mine = samples(batch)
    for first, part, weight in micro_batches(model, batch, size, ranks):
        rows = range(first, first + samples(part))
        quiet = forward.no_sync() if isinstance(forward, DistributedDataParallel) and rows.stop < mine else _NOTHING
        with quiet:
            drop(rows, mine)
            with autocast(hardware, ranks.device):
                loss = forward(part) * weight
            loss.backward()
        total += loss.detach()
    return total


def _decay(plan: Plan, stage: Stage, step: int, longest: float) -> float:
    """Return the decay of the moving average at a step: (1 + t) / (10 + t) after t steps of it, up to `longest`.

    With a fixed decay the average of a short stage would be the weights that it started from. It starts anew in every
    stage of the trunk; a branch goes on with the trunk's, and what follows probes with that of the one that was kept.
    """
    taken = stage.place(step) - plan.began(stage)
    return min(longest, (1 + taken) / (10 + taken))


@torch.no_grad()
def _average(ema: dict[str, Tensor], net: Network, decay: float) -> None:
    """Move the average towards the weights: ema = decay * ema + (1 - decay) * weight; of shards, one's own."""
    weights = dict(net.named_parameters())
    averages = [local(average) for average in ema.values()]
    torch._foreach_lerp_(averages, [local(weights[name].detach()) for name in ema], 1 - decay)


def samples(batch: Batch) -> int:
    """Return how many samples a batch holds."""
    return len(next(iter(batch.values())))


_NOTHING = contextlib.nullcontext()
