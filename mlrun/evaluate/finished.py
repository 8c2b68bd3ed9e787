"""A model that is there, measured: what the evaluations say of a finished run, or of any model folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlrun import files
from mlrun.config.choices import build, literal
from mlrun.config.settings import Hardware
from mlrun.data import ahead
from mlrun.data.source import same_content
from mlrun.errors import UserError, mistake
from mlrun.evaluate import words
from mlrun.evaluate.base import Benchmark, Context, Evaluation, Result, Tell, as_dict, measure, unfit, untold
from mlrun.interop.read import Checkpoint, below, open_folder
from mlrun.interop.tokenizers import has_one
from mlrun.models.network import Network
from mlrun.train.parallel import processes
from mlrun.train.parallel.processes import Ranks


@dataclass(frozen=True)
class Data:
    """Where a held-out set comes from: the node of a data spec, and what opens it; `content` is what it must hold."""

    node: DictConfig
    seed: int
    cache: Path
    batch: int
    content: str | None = None


def evaluate(
    folder: Path, hardware: Hardware, evaluations: Iterable[Evaluation], tell: Tell = untold
) -> dict[str, Result]:
    """Return the results of a run's model, the held-out set being the run's, and write them to its `evaluate.json`.

    `tell` is told how far it is (see `Context`).

    Raises:
        UserError: the folder is no finished run, its weights do not fit, no evaluation fits it, or its data cannot be
            opened.
    """
    config, found = _settings(folder), open_folder(folder, "run")
    data = Data(config.data, config.seed, Path(config.cache), config.eval.batch, _content(folder))
    return _measured(found, data, config.data.get("sequence"), hardware, evaluations, folder, tell)


def evaluate_folder(
    source: Path,
    data: Data,
    hardware: Hardware,
    evaluations: Iterable[Evaluation],
    out: Path | None,
    tell: Tell = untold,
) -> dict[str, Result]:
    """Return the results of a model folder, ours or Hugging Face's; `evaluate.json` is written into `out` if given.

    Text is read with the folder's own tokenizer, and the held-out set is that of `data`, which is opened only if an
    evaluation asks for it.

    Raises:
        UserError: no model is there, the data does not fit it, no evaluation does, or `out` is a run.
    """
    if out is not None and (out / files.CONFIG).is_file():
        remedy = "a report would take the results for the run's own: name another folder"
        raise UserError(mistake("run", out, "a folder that is no run, with source=", remedy))
    found, node = open_folder(source), data.node.copy()
    if "tokenizer" in node and node.tokenizer is None and has_one(found.folder):
        node.tokenizer = str(found.folder)
    own = Data(node, data.seed, data.cache, data.batch)
    return _measured(found, own, None, hardware, evaluations, out, tell)


def _measured(
    found: Checkpoint,
    data: Data,
    sequence: int | None,
    hardware: Hardware,
    evaluations: Iterable[Evaluation],
    out: Path | None,
    tell: Tell,
) -> dict[str, Result]:
    asked = list(evaluations)
    fitting = [one for one in asked if one.applies(found.model)]
    if not fitting:
        raise UserError(_nothing(asked, found.model.objective))
    known = words.of_folder(found, sequence) if found.model.objective != "image" else None
    if problems := unfit(fitting, found.model, known):
        raise UserError(problems)
    ranks = processes.start(hardware)
    try:
        alone = all(isinstance(one, Benchmark) for one in fitting)
        source = None if alone else ahead.served(_opened(data, found), hardware.workers, ranks.device)
        net = network(found, ranks, hardware)
        cache = str(data.cache)
        context = Context(source, data.batch, hardware, ranks, words=known, cache=cache, tell=tell)
        results = measure(fitting, net, context)
        if ranks.first and out is not None:
            files.make(out)
            files.write_json(out / files.EVALUATION, as_dict(results))
        return results
    finally:
        processes.stop(ranks)


def _nothing(asked: Iterable[Evaluation], objective: str) -> str:
    """Return the line about evaluations of which none can be made."""
    given = ", ".join(one.name for one in asked) or "nothing"
    allowed = f"what can be measured of a model whose objective is {objective}"
    return mistake("evaluation", given, allowed, "choose others; docs/evaluation.md says which are for which")


def _opened(data: Data, found: Checkpoint) -> Any:
    """Return the open data; UserError if it does not fit the model, or is not what it should be."""
    spec = build(data.node, "data")
    if problems := spec.problems(found.model):
        raise UserError(problems)
    source = spec.open(found.model, data.seed, data.cache)
    if data.content is not None:
        same_content(data.content, source.describe().get("content"), "this run was trained on")
    return source


def _settings(folder: Path) -> DictConfig:
    """Return a run's config.yaml."""
    if not (folder / files.CONFIG).is_file():
        remedy = below(folder) or "it has no config.yaml; a model folder is named with source=..."
        raise UserError(mistake("run", folder, "a run folder, which holds config.yaml", remedy))
    if not (folder / files.MODEL).is_dir():
        raise UserError(mistake("run", folder, "a finished run", "it has no model yet; let it finish first"))
    said = files.read_yaml(folder / files.CONFIG)
    config = OmegaConf.create(said)
    if not isinstance(said.get("data"), dict):
        raise UserError(f"{folder / files.CONFIG}: it names no data; restore the file")
    config.data = literal(said["data"], folder / files.CONFIG)
    config.data.pop("workers", None)  # of runs of before; hardware.workers since
    return config


def _content(folder: Path) -> str | None:
    """Return the digest of the data that a finished run was trained on; None if its summary does not tell."""
    path = folder / files.SUMMARY
    told: dict[str, Any] = files.read_json(path, "restore it").get("data", {}) if path.is_file() else {}
    return told.get("content")


def network(found: Checkpoint, ranks: Ranks, hardware: Hardware) -> Network:
    """Return the network with the folder's weights, in float32."""
    weights = ranks.placement.shard_all((name, found[name].float()) for name in found)
    return ranks.placement.network(found.model, weights, ranks.device, hardware.precision)
