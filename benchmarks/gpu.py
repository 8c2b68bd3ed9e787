"""GPT-Base and BERT-Large, three levels of 50 steps each, on an NVIDIA GPU: speed, share of its peak, memory by level.

The runs are ordinary ones, `mlrun model=... cycle=3level` on the embedded speeches, beside a bare PyTorch loop and
Hugging Face's Trainer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import loop
from benchmarks.table import table
from mlrun import files
from mlrun import run as runs
from mlrun.cli import command, device, points
from mlrun.cli.tasks import planned
from mlrun.config.load import Config
from mlrun.models.network import build
from mlrun.train import memory
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
        sizes = memory.logged(folder / files.LOG)
    made = []
    for level in plan.levels:
        rate, flops = rates[level.number], level.flops.total / plan.tokens_per_sample
        held = f"{peaks[level.number] / 1e9:.1f} GB" if level.number in peaks else "n/a"
        ratios = rates[1] / rate, level.flops.total / first.flops.total
        size = str(sizes.get(level.number, config.settings.hardware.micro_batch or "whole"))
        cells = [name, str(level.number), f"{rate:,.0f}", mfu(rate * flops, gpu), held]
        made.append([*cells, *(f"{ratio:.3f}" for ratio in ratios), size])
    for way, measured in {"bare loop": bare, "Trainer": trainer}.items():
        speed = measured(config, sizes.get(1))
        share = "n/a" if speed is None else mfu(speed * first.flops.total / plan.tokens_per_sample, gpu)
        made.append([name, way, "n/a" if speed is None else f"{speed:,.0f}", share, *[""] * 4])
    return made


def ready(config: Config, rows: int) -> dict[str, torch.Tensor]:
    """Return the first so many samples of the run's first batch."""
    source = config.data.open(config.model, 0, config.settings.cache, config.settings.batch)
    return {key: value[:rows] for key, value in next(source.batches(0, config.settings.batch)).items()}


def settled(place: torch.device) -> float:
    """Return the time once the device has done all that it was told."""
    if place.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def tokens(config: Config) -> int:
    """Return the tokens of all steps that are timed: the first fifth, which compiles, is not."""
    return (STEPS - STEPS // 5) * config.settings.batch * config.model.tokens(config.data.sequence)


def bare(config: Config, micro: int | None) -> float:
    """Return the tokens a second of level 1 in a loop of six lines, on one batch that is on the device."""
    hardware = config.settings.hardware
    place, rows = torch.device(hardware.device), micro or config.settings.batch
    net = build(config.model, 0, device=place)
    forward: Any = torch.compile(net) if hardware.compile else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    batch = {key: value.to(place) for key, value in ready(config, rows).items()}
    for step in range(STEPS):
        if step == STEPS // 5:
            began = settled(place)
        for _ in range(config.settings.batch // rows):
            with autocast(hardware, place):
                loss = forward(batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return tokens(config) / (settled(place) - began)


def trainer(config: Config, micro: int | None) -> float | None:
    """Return the tokens a second of Hugging Face's Trainer with a network of the same sizes.

    None without `transformers`.
    """
    if not all(map(importlib.util.find_spec, loop.WANTED)):
        return None
    import transformers

    hardware, rows, times = config.settings.hardware, micro or config.settings.batch, []
    place = torch.device(hardware.device)

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step in (STEPS // 5, STEPS):
                times.append(settled(place))

    class Ready(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(batches, batch_size=None)

    parts = config.settings.batch // rows
    with tempfile.TemporaryDirectory() as scratch:
        network = loop.exported(config, Path(scratch) / "model")
        batches = [loop.theirs(ready(config, rows))] * (parts * STEPS)
        arguments = transformers.TrainingArguments(
            output_dir=scratch, use_cpu=place.type == "cpu", max_steps=STEPS, gradient_accumulation_steps=parts,
            per_device_train_batch_size=rows, bf16=hardware.precision == "bf16", torch_compile=hardware.compile,
            optim="adamw_torch_fused", save_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        with open(os.devnull, "w") as console, contextlib.redirect_stdout(console):
            Ready(model=network, args=arguments, train_dataset=batches, callbacks=[Clock()]).train()
    return tokens(config) / (times[1] - times[0])


def main() -> str:
    """Return the table, or why there is none."""
    if not torch.cuda.is_available():
        return "n/a: torch sees no NVIDIA GPU here."
    gpu = torch.cuda.get_device_name()
    found = [row for name, overrides in MODELS.items() for row in rows(name, overrides, gpu)]
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.partition(' ')[0]}"
    return f"{table(HEAD, found)}\n\n{gpu}, {versions}; medians, compiling left out. MFU: FLOPs over the bf16 peak."
