"""What a run and each of its stages begin with: what `init` hands on, the first model, what a stage trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlrun.config.load import Config
from mlrun.errors import UserError
from mlrun.interop import initial
from mlrun.models.network import blocks, initials
from mlrun.plan.stages import Plan, Stage
from mlrun.train.loop import Trainee
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.parallel.placement import like
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Snapshot


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
