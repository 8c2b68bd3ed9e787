"""What `auto` in `hardware` means on this machine: its NVIDIA GPU if there is one, else its processor. No torch here.

A run that has begun keeps what it began with: other hardware gives other last digits, and a resume is bitwise.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlrun.cli import run_folder
from mlrun.config.load import Config
from mlrun.config.settings import Hardware
from mlrun.files import CONFIG
from mlrun.plan.stages import Plan

AUTO = "auto"
# The management library of NVIDIA's driver, and what it returns where a call went well.
NVML, SUCCESS = "libnvidia-ml.so.1", 0
# Compute capabilities from which a GPU adds in bf16, and from which torch.compile has code for it.
BF16, COMPILED = (8, 0), (7, 0)


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine: its name, and its compute capability."""

    name: str
    capability: tuple[int, int]


def settle(config: Config, plan: Plan, folder: Path | None) -> Plan:
    """Put what `auto` means into a configuration, and return its plan with a note that says so."""
    asked = config.settings.hardware
    # Layer dropout's shapes change from step to step, which compiled code cannot follow.
    varies = config.settings.cycle.layer_dropout > 0 and asked.compile == AUTO
    hardware, why = settled(replace(asked, compile=False) if varies else asked, folder)
    if hardware == asked:
        return plan
    config.settings.hardware, config.resolved["hardware"] = hardware, asdict(hardware)
    words = [hardware.device, hardware.precision, *(["compiled"] if hardware.compile else [])]
    return replace(plan, notes=(*plan.notes, f"hardware auto: {', '.join(words)} ({why})"))


def settled(asked: Hardware, folder: Path | None) -> tuple[Hardware, str]:
    """Return the hardware with `auto` replaced, and why; `folder` is that of a run, which may have begun."""
    began = _began_with(folder)
    if began is not None and asked.device in (AUTO, began["device"]):
        return _filled(asked, began), "as this run began"
    if began is not None:
        asked = _filled(asked, {"precision": began["precision"]})  # elsewhere it computes as exactly as before
    found = gpus() if AUTO in asdict(asked).values() and asked.device != "cpu" else ()
    why = _why_not(found) if asked.device == AUTO else ""
    device = asked.device if asked.device != AUTO else "cpu" if why else "cuda"
    weakest = min((gpu.capability for gpu in found), default=(0, 0))
    cuda = device == "cuda"
    meant: dict[str, Any] = {
        "device": device,
        "precision": "bf16" if cuda and weakest >= BF16 else "fp32",
        "compile": cuda and weakest >= COMPILED and importlib.util.find_spec("triton") is not None,
        "micro_batch": AUTO if cuda else None,  # memory that runs out is noticed on a GPU alone
    }
    return _filled(asked, meant), why or ", ".join(sorted({gpu.name for gpu in found})) or f"device={device}"


def _filled(asked: Hardware, meant: Mapping[str, Any]) -> Hardware:
    return replace(asked, **{key: value for key, value in meant.items() if getattr(asked, key) == AUTO})


def _why_not(found: tuple[Gpu, ...]) -> str:
    """Return why the processor computes; nothing if a GPU can."""
    if not found:
        return "no NVIDIA GPU is seen"
    if version("torch").endswith("+cpu"):
        return f"{found[0].name} is there, but this torch is built for processors"
    return ""


def _began_with(folder: Path | None) -> dict[str, Any] | None:
    """Return what a run's `auto` meant when it began, None if it has not."""
    there = run_folder.read(folder / CONFIG) if folder is not None else None
    hardware = (there or {}).get("hardware")
    keys = ("device", "precision", "compile", "micro_batch")
    if not isinstance(hardware, dict) or any(key not in hardware for key in keys):
        return None  # a broken file is told of elsewhere
    return {key: hardware[key] for key in keys}


def gpus(env: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """Return the GPUs of this machine, none if CUDA_VISIBLE_DEVICES hides all of them.

    The driver is asked, which takes milliseconds; torch only where the driver's library is missing beside its devices.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip().partition(",")[0] in ("", "-1"):
        return ()
    return _installed()


@cache
def _installed() -> tuple[Gpu, ...]:
    try:
        return asked(ctypes.CDLL(NVML))
    except OSError:
        return _by_torch() if any(Path("/dev").glob("nvidia[0-9]*")) else ()


def asked(nvml: Any) -> tuple[Gpu, ...]:
    """Return the GPUs that NVML knows (nvmlDeviceGetName, nvmlDeviceGetCudaComputeCapability); none on any failure."""
    if nvml.nvmlInit_v2() != SUCCESS:
        return ()
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != SUCCESS:
        return ()
    found = []
    for index in range(count.value):
        handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        major, minor = ctypes.c_int(), ctypes.c_int()
        calls = (
            nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)),
            nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name))),
            nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)),
        )
        if all(code == SUCCESS for code in calls):
            found.append(Gpu(name.value.decode(), (major.value, minor.value)))
    return tuple(found)


def _by_torch() -> tuple[Gpu, ...]:
    import torch

    count = torch.cuda.device_count()
    return tuple(Gpu(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(count))
