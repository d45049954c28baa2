"""How the results of ONNX's node tests are stored."""

from __future__ import annotations

import pytest

from benchmarks.onnx_conformance import summary

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
