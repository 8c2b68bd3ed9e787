"""How many runs of a sweep one machine takes at a time, and what each may use. No torch at import."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from mlrun import cores
from mlrun.errors import UserError, mistake

KEY = "hydra.launcher."
# What says how long a thread of torch's that waits for the others spins before it sleeps; the rounds that we give it.
WAITING, ROUNDS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"), "10000"


def spin_briefly(env: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads spin for a moment and then sleep, unless the user has chosen; before torch is loaded.

    A spinning thread takes the core from the one that it waits for where a machine has other work. GNU's library
    spins for far longer; sleeping at once costs on an idle machine (docs/lab-notes.md, 2026-11-29).
    """
    if not any(name in env for name in WAITING):
        env["GOMP_SPINCOUNT"] = ROUNDS


@dataclass(frozen=True)
class Share:
    """Room for one run: the environment variables that hold it to its share of the machine."""

    environment: Mapping[str, str]


def shares(at_a_time: int | None, processes: int, device: str, env: Mapping[str, str] = os.environ) -> list[Share]:
    """Return the shares for runs of so many processes each; UserError if there is room for none.

    Without `at_a_time` every processor core, or every GPU, is given away once. More runs than that share GPUs.
    """
    wrong = [
        mistake(f"{KEY}{name}", value, "an integer of at least 1", "correct the number")
        for name, value in (("runs_at_a_time", at_a_time), ("processes_per_run", processes))
        if value is not None and value < 1
    ]
    if wrong:
        raise UserError(wrong)
    if device != "cuda":
        return _on_cores(at_a_time, processes, env)
    gpus = _gpus(env)
    if processes > len(gpus):
        allowed = f"at most {len(gpus)}, the GPUs that are seen"
        raise UserError(mistake(f"{KEY}processes_per_run", processes, allowed, "one process takes one GPU"))
    shares = [gpus[first : first + processes] for first in range(0, len(gpus) - processes + 1, processes)]
    count = at_a_time or len(shares)
    return [Share({"CUDA_VISIBLE_DEVICES": ",".join(shares[i % len(shares)])}) for i in range(count)]


def _on_cores(at_a_time: int | None, processes: int, env: Mapping[str, str]) -> list[Share]:
    """Return shares of equal shares of the cores that this process may use; threads that are set stay as they are."""
    usable = cores.usable()
    count = at_a_time or max(1, usable // processes)
    threads = env.get("OMP_NUM_THREADS") or str(max(1, usable // (count * processes)))
    return [Share({"OMP_NUM_THREADS": threads})] * count


def _gpus(env: Mapping[str, str]) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in env:
        return [name.strip() for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
