"""Engines are carried without a byte being lost, and not put together from another graph."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import models
from trtrun import flavor
from trtrun.building.builder import build_plan
from trtrun.building.graph import prepare
from trtrun.building.options import BuildOptions, parse_shapes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import carried


@pytest.mark.parametrize("size", [0, 3, 4, 4001])
def test_bytes(size: int) -> None:
    data = np.random.default_rng(0).bytes(size)
    assert carried.unpack(carried.pack(data)) == data


@pytest.mark.parametrize("fp16", [False, True])
def test_engines(fp16: bool) -> None:
    model = models.wide()
    options = BuildOptions(fp16=fp16, profiles=parse_shapes(["x=1x64x8x8"]))
    graph = prepare(model, options, flavor.load("tensorrt_rtx").capabilities)[0] or model
    engine = build_plan(model, options)
    packed = carried.pack_engine(engine, graph)
    assert carried.unpack_engine(packed, graph) == engine
    assert len(packed) < 64 * 1024 < len(engine)  # the weights are not in it
    other = onnx.load_from_string(graph)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    with pytest.raises(ValueError, match="cannot be put together"):
        carried.unpack_engine(packed, other.SerializeToString())
