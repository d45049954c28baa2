"""Engines for the GPU suite: built once a session with the real builder, loaded with the real runtime."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

from tests import models
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda.check import check
from trtrun.cuda.device import Device, gpu_count, why_no_gpu
from trtrun.engine import Engine
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.session import Session

TF32 = 2e-3  # relative, L2: TensorRT multiplies fp32 in TF32, whose operands have 10 bits
SHAPES = {
    "affine": ["x=1x12:4x12:64x12"],
    "affine_fp16": ["x=1x12:4x12:64x12"],
    "convolution": ["x=1x3x8x8:2x3x32x32:4x3x64x64"],
    "convolution_fp16": ["x=1x3x8x8:2x3x32x32:4x3x64x64"],
    "several": ["images=1x4:2x4:8x4", "size=1x4:2x4:8x4"],
    "topk": ["k=1:5:50"],
    "static": [],
    "recurrent": [],
}
MODELS: dict[str, Callable[[], bytes]] = {
    "affine": models.affine,
    "affine_fp16": lambda: models.affine("float16"),
    "convolution": models.convolution,
    "convolution_fp16": lambda: models.convolution("float16"),
    "several": models.several,
    "topk": models.topk,
    "static": models.static,
    "recurrent": models.recurrent,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gpu_count() == 0:
        for item in (item for item in items if item.path.parent == Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {why_no_gpu()}"))


@pytest.fixture(scope="session")
def plan() -> Callable[[str], bytes]:
    """``plan(name)``: the plan of one of the test models."""
    built: dict[str, bytes] = {}

    def build(name: str) -> bytes:
        if name not in built:
            options = BuildOptions(profiles=parse_shapes(SHAPES[name]))
            built[name] = build_plan(MODELS[name](), options)
        return built[name]

    return build


@pytest.fixture
def open_session(plan: Callable[[str], bytes]) -> Iterator[Callable[..., Session]]:
    """``open_session(name, **options)``: a session over a fresh engine, closed after the test."""
    opened: list[Engine] = []

    def open_one(name: str, **options: bool) -> Session:
        engine = Engine(plan(name))
        opened.append(engine)
        return Session(engine, **options)

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def reference() -> Callable[[str], OnnxRuntimeSession]:
    """``reference(name)``: the same model in ONNX Runtime on the CPU."""
    loaded: dict[str, OnnxRuntimeSession] = {}

    def load(name: str) -> OnnxRuntimeSession:
        if name not in loaded:
            loaded[name] = OnnxRuntimeSession(MODELS[name]())
        return loaded[name]

    return load


def memory_in_use(device: Device) -> int:
    """Bytes of device memory in use after everything unreachable was freed."""
    gc.collect()
    device.synchronize()
    free, total = device.memory()
    return total - free


def memcpy_nodes(graph: Any) -> int:
    """How many copies by the copy engine a ``CUgraph`` has."""
    count = check(driver.cuGraphGetNodes(graph), "count nodes")[-1]
    nodes = check(driver.cuGraphGetNodes(graph, count), "list nodes")[0]
    kinds = [check(driver.cuGraphNodeGetType(node), "tell a node's type") for node in nodes]
    return kinds.count(driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMCPY)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The L2 norm of the difference over that of the expected values, in float64."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(actual).all()
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))
