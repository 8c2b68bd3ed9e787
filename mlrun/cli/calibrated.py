"""Where a machine's calibrations are kept, what each holds for, and what a plan makes of the one that fits. No torch.

They lie in the cache folder of the data, a file for each machine, family and way to compute.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlrun
from mlrun import cores, files
from mlrun.cli import device
from mlrun.config.load import Config
from mlrun.data import cache
from mlrun.errors import UserError
from mlrun.plan import calibration
from mlrun.plan.calibration import Calibration, Habits, Prediction, evaluated, predict
from mlrun.plan.schedule import due
from mlrun.plan.stages import Plan, Stage
from mlrun.train.machine import processor

FOLDER = "calibration"


def machine(config: Config, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return what a calibration holds for: all that moves seconds or bytes but sizes and lengths."""
    hardware = config.settings.hardware
    usable = cores.usable()
    gpu = [found.name for found in device.gpus()[:1]] if hardware.device == "cuda" else []
    return {
        "host": socket.gethostname(),
        "processor": processor(),
        "gpu": gpu[0] if gpu else None,
        "cores": usable,
        # Without a number torch counts the cores itself, by its own rule.
        "threads": hardware.threads or env.get("OMP_NUM_THREADS") or f"torch's own of {usable} cores",
        "processes": int(env.get("WORLD_SIZE", "1")),
        "sharding": hardware.sharding,
        "device": hardware.device,
        "precision": hardware.precision,
        "compile": hardware.compile,
        "activation_checkpointing": hardware.activation_checkpointing,
        "torch": version("torch"),
        "mlrun": mlrun.__version__,
        "family": config.resolved["model"]["_target_"],
        "optimizer": config.resolved["optimizer"]["_target_"],
        "average": config.optimizer.ema is not None,
        "objective": config.model.objective,
    }


def place(config: Config) -> Path:
    """Return the file of the calibration that fits a configuration, whether it is there or not."""
    return files.expanded(config.settings.cache) / FOLDER / f"{cache.digest(machine(config))}.json"


def keep(config: Config, found: Calibration) -> Path:
    """Write a calibration in the place of the one before; return its file."""
    file = place(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, calibration.as_record(found))
    return file


def find(config: Config) -> Calibration | None:
    """Return the calibration that fits; UserError for a file that is none."""
    file = place(config)
    if not file.is_file():
        return None
    remedy = "remove it, and measure again with task=calibrate"
    record = files.read_json(file, remedy)
    try:
        return calibration.read_record(record)
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{file}: allowed: a calibration of this version; {remedy}") from None


def predicted(config: Config, plan: Plan) -> Prediction | None:
    """Return what a plan should take on this machine; None where it was not measured."""
    found = find(config)
    return None if found is None else predict(plan, habits(config, plan), found)


def habits(config: Config, plan: Plan) -> Habits:
    """Return what of the settings the costs of a plan depend on."""
    settings = config.settings
    micro, every = settings.hardware.micro_batch, settings.checkpoint.every
    return Habits(
        micro if isinstance(micro, int) else None,
        {s.index: 1 if s.fork is not None else _times(plan, s, settings.eval.every) + 1 for s in plan.stages},
        {s.index: _times(plan, s, every) for s in plan.stages},
        evaluated(config),
        config.resolved["growth"],
        1 if config.optimizer.ema is None else 2,
        settings.hardware.device == "cpu",
    )


def _times(plan: Plan, stage: Stage, every: str) -> int:
    """Return how often what is due at a period, and at the end, happens in a stage."""
    period = due(plan, stage, every)
    within = (stage.end - 1) // period - stage.first // period if stage.steps else 0
    return within + 1
