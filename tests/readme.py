"""The README's code, and the models that it speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import trtrun

ROOT = Path(__file__).resolve().parents[1]


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a file of the repository in this language; "" for those without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for its, text in found if its == language]


def write_models(folder: Path) -> None:
    """What the README's models are: the demo's classifier by its inputs and outputs, and a decoder with a state."""
    helper_of = helper.make_tensor_value_info
    weights = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    classifier = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "classifier",
        [helper_of("images", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper_of("logits", TensorProto.FLOAT, [1, 1000])],
        [numpy_helper.from_array(weights, "weights")],
    )
    decoder = helper.make_graph(
        [
            helper.make_node("Cast", ["token"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["past", "number"], ["present"]),
            helper.make_node("Identity", ["present"], ["sum"]),
        ],
        "decoder",
        [helper_of("token", TensorProto.INT64, [1, 1]), helper_of("past", TensorProto.FLOAT, [1, 1])],
        [helper_of("present", TensorProto.FLOAT, [1, 1]), helper_of("sum", TensorProto.FLOAT, [1, 1])],
    )
    for name, graph in (("model.onnx", classifier), ("decoder.onnx", decoder)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (folder / name).write_bytes(model.SerializeToString())


@contextmanager
def pasting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names of somebody who pastes one block after the other in this folder; the runners among them are closed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TRTRUN_CACHE_DIR", str(folder / "cache"))
    write_models(folder)
    names: dict[str, Any] = {}
    try:
        yield names
    finally:
        for value in names.values():
            if isinstance(value, trtrun.Runner):
                value.close()
