"""Tests run on the CPU, in float32 unless they say otherwise, with one thread: sizes are tiny."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
