"""Batches between the specialized sizes: padded or split where rows are independent, left alone where they are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cuda.bindings import driver
from onnx import helper

from tests import models
from tests.gpu.conftest import TF32, relative_error
from tests.gpu.test_session import poison
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda.check import check
from trtrun.cuda.memory import address_of
from trtrun.engine import Engine
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.session import Session


def rows_of_64() -> bytes:
    """x [N, 64] -> y [N, 5], z [N, 64]: an output whose rows are not aligned, and one whose are."""
    rng = np.random.default_rng(1)
    return models._model(
        [helper.make_node("MatMul", ["x", "W"], ["y"]), helper.make_node("Relu", ["x"], ["z"])],
        [models.value("x", ["N", 64])],
        [models.value("y", ["N", 5]), models.value("z", ["N", 64])],
        {"W": rng.standard_normal((64, 5)).astype(np.float32)},
    )


def mixed_rows() -> bytes:
    """x [N, 64] -> y [N, 64] = softmax over the batch."""
    return models._model(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [models.value("x", ["N", 64])],
        [models.value("y", ["N", 64])],
        {},
    )


def normalized() -> bytes:
    """x [N, 64] -> y [N, 64] = x minus the mean over the batch: what a padded row would change a little."""
    return models._model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [models.value("x", ["N", 64])],
        [models.value("y", ["N", 64])],
        {},
    )


def halved_rows() -> bytes:
    """x [N, 64] -> y [2 N, 32]: an output whose first dimension is dynamic and no batch."""
    return models._model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [models.value("x", ["N", 64])],
        [models.value("y", ["M", 32])],
        {"shape": np.int64([-1, 32])},
    )


@pytest.fixture(scope="module")
def plans() -> dict[str, bytes]:
    options = BuildOptions(profiles=parse_shapes(["x=1x64:8x64:40x64"]), specialize=(1, 8, 32))
    return {f.__name__: build_plan(f(), options) for f in (rows_of_64, mixed_rows, normalized, halved_rows)}


@pytest.mark.parametrize("parts", [None, (8,), (1, 1, 1, 1), (32,), (8, 1), (8, 8, 8, 8), (32, 8)])
def test_each_way_gives_the_same(plans: dict[str, bytes], parts: tuple[int, ...] | None) -> None:
    batch = sum(parts) if parts in ((8, 1), (1, 1, 1, 1)) else 5 if parts in ((8,), None) else sum(parts or ()) - 3
    reference = OnnxRuntimeSession(rows_of_64())
    with Engine(plans["rows_of_64"]) as engine, Session(engine) as session:
        engine.ways[(batch, 64),] = parts
        for _ in range(5):
            x = np.random.default_rng().standard_normal((batch, 64)).astype(np.float32)
            poison(session)
            actual, expected = session(x), reference(x)
            on_gpu = session.run({"x": x}, outputs="device")
            for name, wanted in expected.items():
                assert actual[name].shape == wanted.shape
                assert relative_error(actual[name], wanted) <= TF32
                assert relative_error(on_gpu[name].numpy(), wanted) <= TF32
        assert session._routes[(batch, 64),].parts == parts


def test_indices_beyond_the_batch_are_0_whatever_other_shapes_left_there() -> None:
    """Those of longer sequences may be too large for shorter ones."""
    table = np.random.default_rng().standard_normal((16, 4)).astype(np.float32)
    model = models._model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [models.value("i", ["N"], "int32")],
        [models.value("y", ["N", 4])],
        {"table": table},
    )
    plan = build_plan(model, BuildOptions(profiles=parse_shapes(["i=1:8:40"]), specialize=(8,)))
    few, many = np.int32([3, 1, 4, 1, 5]), np.full(8, 15, np.int32)
    with Engine(plan) as engine, Session(engine) as session:
        engine.ways[(5,),] = (8,)
        for turn in range(6):
            np.testing.assert_array_equal(session(many)["y"], table[many])
            np.testing.assert_array_equal(session(few)["y"], table[few])
            if turn:
                route = session._routes[(5,),]
                there = np.full(8, -1, np.int32)
                check(driver.cuMemcpyDtoH(address_of(there), route.input_addresses[0], there.nbytes), "read")
                np.testing.assert_array_equal(there, [*few, 0, 0, 0])


def test_a_way_is_chosen_by_measurement_and_shared(plans: dict[str, bytes]) -> None:
    reference = OnnxRuntimeSession(rows_of_64())
    with Engine(plans["rows_of_64"]) as engine, Session(engine) as session, Session(engine) as other:
        for batch in (3, 8, 9, 31):
            for runner in (session, other):
                for _ in range(4):
                    x = np.random.default_rng().standard_normal((batch, 64)).astype(np.float32)
                    assert relative_error(runner(x)["y"], reference(x)["y"]) <= TF32
        assert set(engine.ways) == {((batch, 64),) for batch in (3, 8, 9, 31)}
        assert engine.ways[(8, 64),] is None


@pytest.mark.parametrize("model", [mixed_rows, normalized, halved_rows], ids=lambda model: model.__name__)
def test_rows_that_influence_each_other_are_never_padded(model: Callable[[], bytes], plans: dict[str, bytes]) -> None:
    reference = OnnxRuntimeSession(model())
    with Engine(plans[model.__name__]) as engine, Session(engine) as session:
        for batch in (3, 9, 31):
            for _ in range(4):
                x = np.random.default_rng().standard_normal((batch, 64)).astype(np.float32)
                actual, expected = session(x)["y"], reference(x)["y"]
                assert actual.shape == expected.shape
                assert relative_error(actual, expected) <= TF32
        assert len(engine.ways) == 3
        assert not any(engine.ways.values())


def test_measuring_the_ways_leaves_the_request_alone(plans: dict[str, bytes]) -> None:
    """The measurement runs through the page-locked memory, where the request itself may lie."""
    reference = OnnxRuntimeSession(rows_of_64())
    with Engine(plans["rows_of_64"]) as engine, Session(engine) as session:
        for batch in (5, 9):
            view = session.staging.view("x", (batch, 64))
            for _ in range(4):
                x = np.random.default_rng().standard_normal((batch, 64)).astype(np.float32)
                view[...] = x
                actual = session(view)
                assert relative_error(actual["y"], reference(x)["y"]) <= TF32
                np.testing.assert_array_equal(view, x)
        z = x
        for _ in range(4):  # a view of the last answer as the next request: z = relu(x), again and again
            z = session.run({"x": z}, outputs="view")["z"][:7]
            np.testing.assert_array_equal(z, np.maximum(x[: len(z)], 0))
        assert len(engine.ways) == 3
