"""A finished run, measured again: the held-out loss of the model in its folder, and what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mlrun.config import Hardware, build
from mlrun.errors import UserError, mistake
from mlrun.interop.read import Checkpoint, open_folder
from mlrun.models.network import Network
from mlrun.train.loop import held_out_loss, held_out_mean
from mlrun.train.parallel import processes
from mlrun.train.parallel.processes import Ranks


def evaluate(folder: Path, hardware: Hardware | None = None) -> dict[str, Any]:
    """Return the held-out loss of a run's model, write it to `evaluate.json`, and for

        text      perplexity, exp(loss) per predicted token
        images    accuracy, the share of images whose likeliest class is the label

    `hardware` replaces that of the run.

    Raises:
        UserError: the folder is no finished run, its weights do not fit, or its data cannot be opened.
    """
    config, found = _settings(folder), open_folder(folder, "run")
    ranks = processes.start(_hardware(config) if hardware is None else hardware)
    try:
        used = _hardware(config) if hardware is None else hardware
        data = build(config.data, "data")
        if problems := data.problems(found.model):
            raise UserError(problems)
        source = data.open(found.model, config.seed, Path(config.cache))
        net = _network(found, ranks, used)
        batch = config.eval.batch
        result = {"val_loss": held_out_loss(net, source.validation(batch), used, ranks)}
        if found.model.objective == "image":
            result["accuracy"] = accuracy(net, source.validation(batch), used, ranks)
        else:
            result["perplexity"] = math.exp(result["val_loss"])
        if ranks.first:
            (folder / "evaluate.json").write_text(json.dumps(result, indent=2) + "\n")
        return result
    finally:
        processes.stop(ranks)


def _settings(folder: Path) -> DictConfig:
    """Return a run's config.yaml."""
    if not (folder / "config.yaml").is_file():
        raise UserError(mistake("run", folder, "a run folder", "it has no config.yaml"))
    if not (folder / "model").is_dir():
        raise UserError(mistake("run", folder, "a finished run", "it has no model yet; let it finish first"))
    return cast(DictConfig, OmegaConf.load(folder / "config.yaml"))


def _hardware(config: DictConfig) -> Hardware:
    return cast(Hardware, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Hardware), config.hardware)))


def _network(found: Checkpoint, ranks: Ranks, hardware: Hardware) -> Network:
    """Return the network with the folder's weights, in float32."""
    weights = ranks.placement.shard_all(found.items())
    return ranks.placement.network(found.model, weights, ranks.device, hardware.precision)


def accuracy(net: Network, batches: Iterable[Mapping[str, Tensor]], hardware: Hardware, ranks: Ranks) -> float:
    """Return the share of images whose likeliest class is the label; of soft labels, the likeliest one."""

    def right(batch: Mapping[str, Tensor]) -> float:
        labels = batch["labels"]
        truth = labels.argmax(-1) if labels.is_floating_point() else labels
        return float((net.logits(batch).argmax(-1) == truth).sum())

    return held_out_mean(net, batches, hardware, ranks, right)
