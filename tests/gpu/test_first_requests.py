"""The first requests of an engine from many threads: nobody dies, and every answer is right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def test_many_threads_meet_a_new_engine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    environment = {**os.environ, "TRTRUN_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.gpu.first_requests"]
    root = Path(__file__).parents[2]
    seeds = [str(seed) for seed in np.random.default_rng().integers(1 << 30, size=3)]
    children = [
        subprocess.Popen(
            [*command, seed, "12"], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for seed in seeds
    ]
    try:
        for seed, child in zip(seeds, children, strict=True):
            out, error = child.communicate(timeout=120)
            assert child.returncode == 0, f"seed {seed}, after round {out.split()[-1:]}: {error[-3000:]}"
            assert int(out.split()[-1]) >= 2
    finally:
        for child in children:
            child.kill()
