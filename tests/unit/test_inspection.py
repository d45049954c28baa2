from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import trtrun
from tests import models
from trtrun.building.builder import build_plan


def test_a_plan_without_a_gpu_says_what_its_bytes_say_and_why_no_more(tmp_path: Path) -> None:
    text = json.dumps({"task": "detect", "names": {"0": "cat"}}).encode()
    path = tmp_path / "m.engine"
    path.write_bytes(struct.pack("<I", len(text)) + text + build_plan(models.affine(batch=3)))
    facts = trtrun.inspect(path)
    assert facts["kind"] == "plan"
    assert facts["family"] == "tensorrt_rtx"
    assert facts["version"] == "1.6.1.120"
    assert facts["metadata"]["names"] == {"0": "cat"}
    assert facts["loaded_by"] == "TensorRT-RTX 1.6.1.120"
    assert "inputs" in facts or "no" in facts["engine_unavailable"]
    json.dumps(facts)


def test_an_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.convolution())
    facts = trtrun.inspect(path)
    assert facts["kind"] == "onnx"
    assert facts["opsets"] == {"ai.onnx": models.OPSET}
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 3, "H", "W"]}]
    assert [output["name"] for output in facts["outputs"]] == ["y", "pooled"]
    assert facts["operators"]["Conv"] == 1
    assert facts["parameters"] == 8 * 27 + 8
    json.dumps(facts)


def test_what_is_neither(tmp_path: Path) -> None:
    for name, data, error in (
        ("a.engine", b"hello", trtrun.PlanError),
        ("a.onnx", b"hello", trtrun.OnnxError),
        ("b.onnx", b"", trtrun.OnnxError),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(error):
            trtrun.inspect(path)
    with pytest.raises(trtrun.ModelFileError):
        trtrun.inspect(tmp_path / "no.engine")
