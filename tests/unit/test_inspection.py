from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import trtrun
from tests import models
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions
from trtrun.cuda.device import gpu_count


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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param(
            (),
            ["8.0", "8.6", "8.9", "12.0", "12.1", "other"],
            marks=pytest.mark.skipif(gpu_count() > 0, reason="the builder may choose the GPU at hand"),
        ),
        (("sm_75",), ["7.5"]),
        (("sm_86", "sm_120"), ["8.6", "12.0"]),
        (("sm_121",), ["12.1"]),
    ],
)
def test_the_compute_capabilities_are_read_from_the_bytes(
    asked: tuple[str, ...], said: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(build_plan(models.affine(batch=3), BuildOptions(compute_capabilities=asked)))
    assert trtrun.inspect(path)["compute_capabilities"] == said


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
