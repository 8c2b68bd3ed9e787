"""A finished run, measured again: what the evaluations say of the model in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from mlrun import files
from mlrun.config import Hardware, build
from mlrun.data.source import same_content
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
        data = build(config.data, "data")
        if problems := data.problems(found.model):
            raise UserError(problems)
        source = data.open(found.model, config.seed, Path(config.cache))
        if (told := _content(folder)) is not None:
            same_content(told, source.describe().get("content"), "this run was trained on")
        net = _network(found, ranks, hardware)
        result = measure(evaluations, net, Context(source, config.eval.batch, hardware, ranks))
        if ranks.first:
            files.write_json(folder / files.EVALUATION, result)
        return result
    finally:
        processes.stop(ranks)


def _settings(folder: Path) -> DictConfig:
    """Return a run's config.yaml."""
    if not (folder / files.CONFIG).is_file():
        raise UserError(mistake("run", folder, "a run folder", "it has no config.yaml"))
    if not (folder / files.MODEL).is_dir():
        raise UserError(mistake("run", folder, "a finished run", "it has no model yet; let it finish first"))
    return cast(DictConfig, OmegaConf.load(folder / files.CONFIG))


def _content(folder: Path) -> str | None:
    """Return the digest of the data that a finished run was trained on; None if its summary does not tell."""
    path = folder / files.SUMMARY
    told: dict[str, Any] = files.read_json(path, "restore it").get("data", {}) if path.is_file() else {}
    return told.get("content")


def _network(found: Checkpoint, ranks: Ranks, hardware: Hardware) -> Network:
    """Return the network with the folder's weights, in float32."""
    weights = ranks.placement.shard_all(found.items())
    return ranks.placement.network(found.model, weights, ranks.device, hardware.precision)
