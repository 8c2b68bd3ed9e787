"""How a run and each of its stages begin: the checks against what was there before, the weights, what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.config.load import Config
from mlrun.errors import UserError, mistake
from mlrun.evaluate import words
from mlrun.evaluate.base import unfit
from mlrun.interop import initial
from mlrun.models.network import blocks, initials
from mlrun.multilevel import cost
from mlrun.plan import begun
from mlrun.plan.stages import Plan, Stage
from mlrun.train import counted
from mlrun.train.checkpoint import layout
from mlrun.train.loop import Trainee
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.parallel.placement import like
from mlrun.train.parallel.processes import Ranks
from mlrun.train.pruning import Pruned
from mlrun.train.reading import Reading
from mlrun.train.snapshot import Snapshot


def refuse_uneven(config: Config, plan: Plan, ranks: Ranks) -> None:
    """Raise UserError for a batch that the processes cannot share out evenly."""
    keys = {s.samples.batch: "batch" if s.samples.batch == config.settings.batch else f"cycle.stages.{s.index}.batch"
            for s in plan.trunk}  # fmt: skip
    remedy = f"choose a multiple of {ranks.world}, the number of processes"
    allowed = f"a multiple of {ranks.world}"
    if found := [mistake(key, batch, allowed, remedy) for batch, key in keys.items() if batch % ranks.world]:
        raise UserError(found)


def notes(config: Config, plan: Plan, data: Reading) -> list[str]:
    """Return what is to be known of a run's data and of its costs, a line each.

    Raises:
        UserError: something costs more than it declares.
    """
    costs = counted.notes(plan.levels, data.held_out_sample)
    costs += cost.notes(config.growth, config.probes, plan, data.first)
    return [*data.source.describe().get("notes", []), *costs]


def words_of(config: Config, source: Any) -> words.Words | None:
    """Return how text becomes the ids of the run's model; None where no tokenizer tells it.

    Raises:
        UserError: an evaluation does not fit to the model.
    """
    known = words.of_source(source, config.model, config.data.sequence)
    if problems := unfit(config.evaluation.values(), config.model, known):
        raise UserError(problems)
    return known


def ended(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, None if it has yet to be.

    Raises:
        Pruned: it was found to be hopeless, and `find.prune` still asks for that.
        UserError: summary.json is damaged.
    """
    written = folder / files.SUMMARY
    before = files.read_json(written, "remove it, and the run goes on") if written.exists() else {}
    if before.get("status") == "pruned" and config.settings.find.prune is not None:
        raise Pruned(before["reason"])
    return before if before.get("status") == "finished" else None


def charged(config: Config, plan: Plan, folder: Path, ranks: Ranks) -> Plan:
    """Return the plan with what the start had cost; what a run learns of it only now is written where it tells it.

    Raises:
        UserError: the folder `init` is missing or no model, or `init_flops` does not fit to it.
    """
    found = initial.charged(plan, config.settings, folder)
    if ranks.first:
        initial.declare(folder, found, config.resolved)
    return found


def same_plan(config: Config, plan: Plan, folder: Path) -> None:
    """Raise UserError if a run that has begun was planned otherwise, or own code of it has changed since."""
    path = folder / files.PLAN
    begins = not layout.present(folder / files.CHECKPOINTS, layout.LAST, layout.BEFORE)
    if begins or not path.exists():
        return
    there = files.read_json(path, "restore it, or remove it: it is written anew")
    if problems := begun.problems(there, plan, config, path):
        raise UserError(problems)


def carried(config: Config, end: Any, ranks: Ranks) -> initial.Carried | None:
    """Return what the model that the run starts from hands on; read now, as its folder may be gone at the end.

    Args:
        end: the id that ends a document in the data, if any.
    """
    init, model = config.settings.init, config.model
    if init is None or model.objective == "image":
        return None
    chosen = model.objective == "causal" and getattr(config.data, "end", None) is not None
    found = initial.carried(init, end if chosen else None)
    if found is None:
        ranks.say(f"init={init}: it is gone; special ids will be those that the tokenizer names")
    return found


def fresh(config: Config, plan: Plan, ranks: Ranks) -> Snapshot:
    """Return the first stage's model, from its seed or from the folder `init`.

    Raises:
        UserError: the model of that folder is another one.
    """
    model, init = plan.level(plan.stages[0].level).model, config.settings.init
    keep = ranks.placement.shard_all
    if init is None:
        return Snapshot({"weights": keep(initials(model, config.settings.seed))})
    found = initial.opened(init)
    if problems := initial.unlike(init, found.model, model):
        raise UserError(problems)
    return Snapshot({"weights": keep((name, found[name].float()) for name in found)})


def trainee(
    config: Config, plan: Plan, stage: Stage, current: Snapshot, kept: Mapping[int, Snapshot], ranks: Ranks
) -> Trainee:
    """Return what a stage trains, in the state that it begins with or goes on from.

    Args:
        kept: what waits for the return to it, by level.
    """
    spec, hardware = config.optimizer, config.settings.hardware
    model = plan.level(stage.level).model
    net = ranks.placement.network(model, current.weights, ranks.device, hardware.precision)
    for block in blocks(net):
        block.recompute = hardware.activation_checkpointing
    stage_loss = None
    if stage.transfer == "decoalesce":
        coarse = plan.level(stage.level + 1)
        stage_loss = config.growth.stage_loss(net, stage, coarse, kept.get(coarse.number))
    optimizer = Stepping(spec, net)
    optimizer.load(current.tensors, current.optimizer_steps)
    start = current.tensors.get("ema", current.weights)
    ema = {n: like(p, start[n]) for n, p in net.named_parameters()} if spec.ema is not None else None
    return Trainee(net, optimizer, ema, stage_loss)
