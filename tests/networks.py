"""Plans made with TensorRT-RTX's network API, for what ONNX models do not show. Built without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorrt_rtx as trt

from trtrun import flavor

Shape = Sequence[int]


def build(
    define: Callable[[Any], None],
    *,
    flags: Sequence[Any] = (),
    profiles: Sequence[dict[str, tuple[Shape, Shape, Shape]]] = (),
    shape_values: Sequence[dict[str, tuple[Shape, Shape, Shape]]] = (),
    detailed: bool = False,
) -> bytes:
    """A plan of the network that ``define(network)`` makes."""
    logger = flavor.load("tensorrt_rtx").logger
    builder = trt.Builder(logger.handle)
    network = builder.create_network(0)
    define(network)
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(flag)
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for index, shapes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for name, (low, opt, high) in shapes.items():
            profile.set_shape(name, low, opt, high)
        for name, (low, opt, high) in (shape_values[index] if shape_values else {}).items():
            profile.set_shape_input(name, low, opt, high)
        config.add_optimization_profile(profile)
    with logger.capture() as lines:
        plan = builder.build_serialized_network(network, config)
    assert plan is not None, lines
    return bytes(plan)


def output(network: Any, tensor: Any, name: str) -> None:
    tensor.name = name
    network.mark_output(tensor)


def identity(dtype: Any, shape: Shape = (4, 6), *, formats: int | None = None) -> bytes:
    """x -> y = x in one dtype; the input in a format of TensorFormat's bits."""

    def define(network: Any) -> None:
        x = network.add_input("x", dtype, shape)
        if formats is not None:
            x.allowed_formats = formats
        y = network.add_identity(x).get_output(0)
        output(network, y, "y")
        if formats is not None:
            y.allowed_formats = formats

    return build(define)


def doubled(dtype: Any, shape: Shape, formats: int) -> bytes:
    """x -> y = x + x, both in a format."""

    def define(network: Any) -> None:
        x = network.add_input("x", dtype, shape)
        x.allowed_formats = formats
        y = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
        output(network, y, "y")
        y.allowed_formats = formats

    return build(define)


def recurrent(batch: int = 2, width: int = 8) -> bytes:
    """x, h -> y = h + x, h_out = (h + x) / 2."""

    def define(network: Any) -> None:
        x = network.add_input("x", trt.float32, (batch, width))
        h = network.add_input("h", trt.float32, (batch, width))
        half = network.add_constant((1, 1), np.float32([[0.5]])).get_output(0)
        y = network.add_elementwise(x, h, trt.ElementWiseOperation.SUM).get_output(0)
        output(network, y, "y")
        output(network, network.add_elementwise(y, half, trt.ElementWiseOperation.PROD).get_output(0), "h_out")

    return build(define)


def growing(most: int = 16) -> bytes:
    """new [1, 4], past [n, 4] -> present [n + 1, 4] = past, new; total [1, 4] = the sum of present's rows."""

    def define(network: Any) -> None:
        new = network.add_input("new", trt.float32, (1, 4))
        past = network.add_input("past", trt.float32, (-1, 4))
        joined = network.add_concatenation([past, new])
        joined.axis = 0
        present = joined.get_output(0)
        output(network, network.add_reduce(present, trt.ReduceOperation.SUM, 1, True).get_output(0), "total")
        output(network, network.add_identity(present).get_output(0), "present")

    return build(define, profiles=[{"past": ((0, 4), (4, 4), (most, 4))}])


def kv_cache(length: int = 8) -> bytes:
    """cache [1, 1, L, 4], update [1, 1, 1, 4], at [1] -> cache_out: the cache with the update written in place."""

    def define(network: Any) -> None:
        cache = network.add_input("cache", trt.float32, (1, 1, length, 4))
        update = network.add_input("update", trt.float32, (1, 1, 1, 4))
        at = network.add_input("at", trt.int32, (1,))
        layer = network.add_kv_cache_update(cache, update, at, trt.KVCacheMode.LINEAR)
        output(network, layer.get_output(0), "cache_out")

    return build(define)


def shape_of() -> bytes:
    """x [n, m] -> y = x, size = [n, m] as a shape tensor."""

    def define(network: Any) -> None:
        x = network.add_input("x", trt.float32, (-1, -1))
        output(network, network.add_identity(x).get_output(0), "y")
        size = network.add_shape(x).get_output(0)
        size.name = "size"
        network.mark_output_for_shapes(size)

    return build(define, profiles=[{"x": ((1, 1), (4, 4), (16, 16))}])


def scaled(factor: float, *, refit: bool) -> bytes:
    """x [2, 4] -> y = x * W, with W a named weight."""

    def define(network: Any) -> None:
        x = network.add_input("x", trt.float32, (2, 4))
        weight = np.full((1, 4), factor, np.float32)
        define.kept = weight  # type: ignore[attr-defined]
        layer = network.add_constant((1, 4), weight)
        network.set_weights_name(trt.Weights(weight), "W")
        output(
            network, network.add_elementwise(x, layer.get_output(0), trt.ElementWiseOperation.PROD).get_output(0), "y"
        )

    return build(define, flags=[trt.BuilderFlag.REFIT] if refit else [])


def large(megabytes: int, *, streaming: bool) -> bytes:
    """x [1, 1024] -> y = x @ W1 @ W2 …, fp16, with or without weight streaming."""
    count = megabytes // 2
    weights = [np.random.default_rng(i).standard_normal((1024, 1024)).astype(np.float16) / 32 for i in range(count)]

    def define(network: Any) -> None:
        x = network.add_input("x", trt.float16, (1, 1024))
        none = trt.MatrixOperation.NONE
        for weight in weights:
            w = network.add_constant((1024, 1024), weight).get_output(0)
            x = network.add_matrix_multiply(x, none, w, none).get_output(0)
        output(network, x, "y")

    return build(define, flags=[trt.BuilderFlag.WEIGHT_STREAMING] if streaming else [])


def squared(most: int = 64) -> bytes:
    """x [n, m] -> y = x * x, for n and m up to ``most``: as many shapes as a test wants."""

    def define(network: Any) -> None:
        x = network.add_input("x", trt.float32, (-1, -1))
        output(network, network.add_elementwise(x, x, trt.ElementWiseOperation.PROD).get_output(0), "y")

    return build(define, profiles=[{"x": ((1, 1), (8, 8), (most, most))}])


def several_profiles() -> bytes:
    """x [n, 4] -> y = x * 2 under the ranges 1…4, 1…64 and 100…200."""

    def define(network: Any) -> None:
        x = network.add_input("x", trt.float32, (-1, 4))
        output(network, network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0), "y")

    ranges = [((1, 4), (2, 4), (4, 4)), ((1, 4), (32, 4), (64, 4)), ((100, 4), (150, 4), (200, 4))]
    return build(define, profiles=[{"x": r} for r in ranges])
