"""The committed PTX is what the CUDA sources compile to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_ptx_is_of_the_source() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    done = subprocess.run(
        [sys.executable, "scripts/compile_kernels.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
