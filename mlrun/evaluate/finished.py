"""A finished run, measured again: what the evaluations say of the model in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from mlrun.config import Hardware, build
from mlrun.errors import UserError, mistake
from mlrun.evaluate.base import Context, Evaluation, measure
from mlrun.interop.read import Checkpoint, open_folder
from mlrun.models.network import Network
from mlrun.train.parallel import processes
from mlrun.train.parallel.processes import Ranks


def evaluate(folder: Path, hardware: Hardware, evaluations: Iterable[Evaluation]) -> dict[str, Any]:
    """Return the numbers of a run's model on the run's held-out set, and write them to `evaluate.json`.

    Raises:
        UserError: the folder is no finished run, its weights do not fit, or its data cannot be opened.
    """
    config, found = _settings(folder), open_folder(folder, "run")
    ranks = processes.start(hardware)
    try:
        source = build(config.data, "data").open(found.model, config.seed, Path(config.cache))
        net = _network(found, ranks, hardware)
        result = measure(evaluations, net, Context(source, config.eval.batch, hardware, ranks))
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


def _network(found: Checkpoint, ranks: Ranks, hardware: Hardware) -> Network:
    """Return the network with the folder's weights, in float32."""
    weights = ranks.placement.shard_all(found.items())
    return ranks.placement.network(found.model, weights, ranks.device, hardware.precision)
