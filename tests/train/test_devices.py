"""Nothing is left on the processor: whole runs on a device of torch's fake tensors, which know where each of them lies.

`fake_gpu.py` goes through them in a process of its own: families, ways to grow, optimizers, averages, branches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("torch 2.6 has no devices made of Python", allow_module_level=True)
import fake_gpu

pytestmark = pytest.mark.slow
Found = dict[str, str | None]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    out, tests = tmp_path_factory.mktemp("fake") / "found.json", Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, fake_gpu.__file__, str(out)], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    read: Found = json.loads(out.read_text())
    return read


@pytest.mark.parametrize("case", sorted(fake_gpu.CASES.keys() - {"planted"}))
def test_a_whole_run_leaves_no_tensor_on_the_processor(case: str, found: Found) -> None:
    assert found[case] is None, found[case]


def test_a_tensor_that_is_left_there_is_found(found: Found) -> None:
    assert "at least two devices, gpu:0 and cpu" in str(found["planted"])
