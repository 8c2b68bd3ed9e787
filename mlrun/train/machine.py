"""What a run computes on, and by which versions: seconds mean nothing without it. No torch at import."""

from __future__ import annotations

import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlrun
from mlrun import cores
from mlrun.config.settings import Hardware

if TYPE_CHECKING:
    from mlrun.train.parallel.processes import Ranks


def words(ranks: Ranks) -> str:
    """Return what the seconds were measured on, in words."""
    import torch

    if ranks.device.type == "cuda":
        return f"{ranks.world} x {torch.cuda.get_device_name(ranks.device)}, torch {torch.__version__}"
    return f"{ranks.world} x CPU ({platform.machine()}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def facts(ranks: Ranks, hardware: Hardware) -> dict[str, Any]:
    """Return what a `start` record says (see `mlrun.log.log`)."""
    import torch

    gpu = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "processor": processor(),
        "cores": cores.usable(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "precision": hardware.precision,
        "compile": hardware.compile,
        "processes": ranks.world,
        "mlrun": mlrun.__version__,
        "commit": _commit(Path(mlrun.__path__[0]).parent),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words what a start's facts have otherwise than those of the start before, as far as these go."""
    known = [key for key in now if key != "time" and key in before]
    return [f"{key}: {before[key]}, now {now[key]}" for key in known if before[key] != now[key]]


def processor() -> str:
    """Return the processor's model, or its architecture where the system does not say."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


@cache
def _commit(checkout: Path) -> str | None:
    """Return the commit of a checkout, with `+` where files differ from it; None for an installed package."""
    if not (checkout / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
