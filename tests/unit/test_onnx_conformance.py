"""How the results of ONNX's node tests are stored."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from benchmarks.onnx_conformance import Child, check, summary

FULL = {"gpu": "A", "tensorrt": "1", "onnx": "1", "date": "2026-01-01"}
LATER = {**FULL, "gpu": "B"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_of_some_tests_is_merged() -> None:
    answers = [
        {"name": "test_triu", "operators": [], "result": "failed", "reason": "the process died"},
        {"name": "test_tril", "operators": ["Trilu"], "result": "passed", "error": 0.0},
    ]
    full = summary(answers, None, FULL)
    assert (full["passed"], full["failed"], full["refused"]) == (1, 1, 0)
    assert full["operators"] == {"Trilu": {"passed": 1, "failed": 1}}  # of those that died too
    some = [{"name": "test_triu", "operators": ["Trilu"], "result": "passed", "error": 0.0}]
    merged = summary(some, full, LATER)
    assert merged["environment"] == FULL
    assert merged["tests"]["test_triu"] == {"result": "passed", "error": 0.0, "environment": LATER}
    assert merged["tests"]["test_tril"] == full["tests"]["test_tril"]
    assert (merged["passed"], merged["failed"]) == (2, 0)
    assert merged["operators"] == {"Trilu": {"passed": 2}}
    assert "environment" not in summary(some, full, FULL)["tests"]["test_triu"]
    refused = [{"name": "test_tril", "operators": [], "result": "refused", "by": "trtrun", "reason": "BuildError: no"}]
    assert summary(refused, full, FULL)["refused_by"] == {"TensorRT": 0, "trtrun": 1}


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, ml_dtypes.int4])
def test_integers_are_equal_in_value_and_dtype(dtype: type) -> None:
    wanted = np.ones(3, dtype)
    assert check(wanted.copy(), wanted) == ("", 0.0)
    assert check(wanted.astype(np.int32), wanted)[0].startswith("dtype int32")
    other = wanted.copy()
    other[1] = 0
    assert check(other, wanted)[1] == float("inf")
    assert check(wanted[:2], wanted)[0].startswith("shape")
    assert check(np.float32([1, 2]), np.float64([1, 2.0001]))[1] < 1e-3


_WORKER = """
import json, os, sys
for line in sys.stdin:
    name = line.strip()
    if name == "dies":
        os._exit(4)
    print(json.dumps({"name": name, "operators": [], "result": "passed", "error": 0.0}), flush=True)
    if name == "dies_after":
        os._exit(3)
"""


def test_no_test_is_lost_when_a_process_dies(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(_WORKER)
    child = Child([])
    child._command = [sys.executable, str(tmp_path / "worker.py")]
    before = child.ask("dies_after")
    assert before["result"] == "passed"
    assert child._process is not None
    child._process.wait(20)
    assert child.ask("next")["result"] == "passed"
    assert before["result"] == "failed"
    assert "after its answer the process died (3)" in before["reason"]
    died = child.ask("dies")
    assert (died["name"], died["result"]) == ("dies", "failed")
    assert "the process died (4)" in died["reason"]
    last = child.ask("dies_after")
    child.close()
    assert last["result"] == "failed"
    child._command = [sys.executable, "-c", "import sys; sys.exit(5)"]
    assert child.ask("never")["result"] == "failed"
    assert child.ask("neither")["result"] == "failed"
    child.close()
