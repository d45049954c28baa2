"""The README's Python, pasted block after block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.readme import blocks, pasting

torch = pytest.importorskip("torch")


def test_every_block_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, use, on_gpu, state = blocks("README.md", "python")
    with pasting(tmp_path, monkeypatch) as names:
        exec(use, names)  # builds model.engine, which the first block has from elsewhere
        assert names["pred"](np.zeros((8, 3, 224, 224), np.float32))["logits"].shape == (8, 1000)
        exec(on_gpu, names)
        torch.cuda.current_stream().synchronize()
        assert names["y"].abs().max() == 0  # zeros in, through a network without biases
        exec(state, names)
        assert names["out"]["sum"] == sum(range(8))
        exec(first, names)
        assert names["out"]["logits"].shape == (1, 1000)
