"""Small ONNX models for tests, written with onnx.helper; weights are random with a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}


def _model(nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes, "test", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return model.SerializeToString()


def value(name: str, shape: Sequence[int | str], dtype: str = "float32"):
    return helper.make_tensor_value_info(name, _TYPES[dtype], shape)


def affine(dtype: str = "float32", batch: int | str = "N") -> bytes:
    """x [N, 12] -> y [N, 5] = relu(x @ W + b)."""
    rng = np.random.default_rng(1)
    return _model(
        [
            helper.make_node("MatMul", ["x", "W"], ["h"]),
            helper.make_node("Add", ["h", "b"], ["s"]),
            helper.make_node("Relu", ["s"], ["y"]),
        ],
        [value("x", [batch, 12], dtype)],
        [value("y", [batch, 5], dtype)],
        {"W": rng.standard_normal((12, 5)).astype(dtype), "b": rng.standard_normal(5).astype(dtype)},
    )


def wide() -> bytes:
    """x [N, 64, H, W] -> y [N, 256, H, W]: a convolution with half a megabyte of weights."""
    weights = {"W": np.random.default_rng(4).standard_normal((256, 64, 3, 3)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "W"], ["y"], pads=[1, 1, 1, 1])]
    return _model(nodes, [value("x", ["N", 64, "H", "W"])], [value("y", ["N", 256, "H", "W"])], weights)


def static() -> bytes:
    """affine with a batch of 3 and nothing else."""
    return affine(batch=3)


def convolution(dtype: str = "float32") -> bytes:
    """x [N, 3, H, W] -> y [N, 8, H, W] and pooled [N, 8]: batch, height and width are dynamic."""
    rng = np.random.default_rng(2)
    return _model(
        [
            helper.make_node("Conv", ["x", "W", "b"], ["h"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["h"], ["y"]),
            helper.make_node("GlobalAveragePool", ["y"], ["g"]),
            helper.make_node("Flatten", ["g"], ["pooled"]),
        ],
        [value("x", ["N", 3, "H", "W"], dtype)],
        [value("y", ["N", 8, "H", "W"], dtype), value("pooled", ["N", 8], dtype)],
        {
            "W": (rng.standard_normal((8, 3, 3, 3)) / 5).astype(dtype),
            "b": rng.standard_normal(8).astype(dtype),
        },
    )


def several() -> bytes:
    """images [N, 4] and size [N, 4] -> total = images + size, product = images * size, scaled = images * 3."""
    return _model(
        [
            helper.make_node("Add", ["images", "size"], ["total"]),
            helper.make_node("Mul", ["images", "size"], ["product"]),
            helper.make_node("Mul", ["images", "three"], ["scaled"]),
        ],
        [value("images", ["N", 4]), value("size", ["N", 4])],
        [value("total", ["N", 4]), value("product", ["N", 4]), value("scaled", ["N", 4])],
        {"three": np.float32([3])},
    )


def nonzero() -> bytes:
    """x [N] -> indices [1, K]: K depends on the data. TensorRT-RTX 1.6 has no implementation of it."""
    return _model(
        [helper.make_node("NonZero", ["x"], ["indices"])],
        [value("x", ["N"])],
        [value("indices", [1, "K"], "int64")],
        {},
    )


def topk() -> bytes:
    """x [4, 100] and k int64 [1] -> values [4, k]: k is a shape tensor, which TensorRT reads on the host."""
    return _model(
        [helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=1)],
        [value("x", [4, 100]), value("k", [1], "int64")],
        [value("values", [4, "K"])],
        {},
    )


def chain(layers: int = 40, perturbed: int | None = None) -> bytes:
    """x [N, 8] -> y, through alternating Mul and Neg; the weight of one Mul is perturbed."""
    rng = np.random.default_rng(0)
    nodes: list = []
    weights: dict[str, np.ndarray] = {}
    for index in range(layers):
        source, target = f"t{index}" if index else "x", f"t{index + 1}" if index + 1 < layers else "y"
        if index % 2:
            nodes.append(helper.make_node("Neg", [source], [target], name=f"layer{index}"))
            continue
        weights[f"w{index}"] = (1 + rng.random(8)).astype(np.float32) * (1.3 if index == perturbed else 1)
        nodes.append(helper.make_node("Mul", [source, f"w{index}"], [target], name=f"layer{index}"))
    return _model(
        nodes,
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        {name: weight.astype(np.float32) for name, weight in weights.items()},
    )


def recurrent() -> bytes:
    """x [2, 8], h [2, 8] -> y = x + h, h_out = y / 2: a state that decays."""
    return _model(
        [helper.make_node("Add", ["x", "h"], ["y"]), helper.make_node("Mul", ["y", "half"], ["h_out"])],
        [value("x", [2, 8]), value("h", [2, 8])],
        [value("y", [2, 8]), value("h_out", [2, 8])],
        {"half": np.float32([0.5])},
    )


def small_yolo(classes: int = 3, extras: int = 0, prototypes: bool = False) -> bytes:
    """images float32 [N, 3, 128, 128] -> y [N, 4 + classes + extras, 336]: a convolution for each stride of 8, 16, 32.

    With prototypes there is a second output [N, extras, 32, 32].
    """
    size, width = 128, 4 + classes + extras
    rng = np.random.default_rng(0)
    nodes, weights = [], [numpy_helper.from_array(np.array([0, width, -1]), "flat")]
    for stride in (8, 16, 32):
        kernel = rng.standard_normal((width, 3, stride, stride)).astype(np.float32) * 4 / stride
        weights.append(numpy_helper.from_array(kernel, f"w{stride}"))
        nodes.append(
            helper.make_node(
                "Conv", ["images", f"w{stride}"], [f"c{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        nodes.append(helper.make_node("Reshape", [f"c{stride}", "flat"], [f"f{stride}"]))
    scale = np.array([size, size, 40, 40] + [1] * (classes + extras), np.float32).reshape(1, -1, 1)
    weights.append(numpy_helper.from_array(scale, "scale"))
    nodes.append(helper.make_node("Concat", ["f8", "f16", "f32"], ["all"], axis=2))
    nodes.append(helper.make_node("Sigmoid", ["all"], ["unit"]))
    nodes.append(helper.make_node("Mul", ["unit", "scale"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width, 336])]
    if prototypes:
        kernel = rng.standard_normal((extras, 3, 4, 4)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, "prototypes"))
        nodes.append(helper.make_node("Conv", ["images", "prototypes"], ["masks"], kernel_shape=[4, 4], strides=[4, 4]))
        outputs.append(helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["N", extras, 32, 32]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, size, size])],
        outputs,
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


class _Convolutions:
    """A network of convolutions under construction; weights keep the values at one size."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.weights: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(3)

    def conv(self, x: str, name: str, cin: int, cout: int, kernel: int = 1, step: int = 1, gain: float = 2.0) -> str:
        scale = np.sqrt(gain / (cin * kernel * kernel))
        shape = cout, cin, kernel, kernel
        self.weights[f"{name}.w"] = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        self.weights[f"{name}.b"] = (self._rng.standard_normal(cout) * 0.1).astype(np.float32)
        attributes: dict[str, Any] = {"strides": [step] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", [x, f"{name}.w", f"{name}.b"], name, **attributes)

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name


def residual(
    batch: int | str = "N",
    channels: int = 512,
    width: int = 256,
    side: int = 28,
    stride: int = 2,
    dtype: str = "float32",
) -> bytes:
    """Two of ResNet-50's residual blocks: the first has a convolution in its shortcut, the second has none."""
    net = _Convolutions()
    x, cin = "x" if dtype == "float32" else net.node("Cast", ["x"], "xf", to=TensorProto.FLOAT), channels
    for block, step in (("a", stride), ("b", 1)):
        h = net.node("Relu", [net.conv(x, f"{block}1", cin, width)], f"{block}1r")
        h = net.node("Relu", [net.conv(h, f"{block}2", width, width, 3, step)], f"{block}2r")
        h = net.conv(h, f"{block}3", width, 4 * width, gain=0.2)
        if block == "a":
            x = net.conv(x, "shortcut", cin, 4 * width, step=step, gain=1.0)
        x = net.node("Relu", [net.node("Add", [h, x], f"{block}s")], "y" if block == "b" else f"{block}y")
        cin = 4 * width
    out = side // stride
    inputs = [value("x", [batch, channels, side, side], dtype)]
    return _model(net.nodes, inputs, [value("y", [batch, 4 * width, out, out])], net.weights)


def pyramid(channels: int = 256, side: int = 28) -> bytes:
    """A feature pyramid's step: a coarse map made larger, plus a convolution of the fine one; x [1, C, S, S]."""
    net = _Convolutions()
    coarse = net.node("Relu", [net.conv("x", "down", channels, channels, 3, step=2)], "coarse")
    net.weights["scales"] = np.float32([1, 1, 2, 2])
    resized = net.node("Resize", [net.conv(coarse, "top", channels, channels), "", "scales"], "up", mode="nearest")
    added = net.node("Add", [net.conv("x", "lateral", channels, channels), resized], "sum")
    net.conv(added, "y", channels, channels, 3)
    shape = [1, channels, side, side]
    return _model(net.nodes, [value("x", shape)], [value("y", shape)], net.weights)


def split(channels: int = 128, side: int = 40) -> bytes:
    """YOLOv8's C2f: halves of a map, one of them added to, after a convolution of the input that adds one half."""
    net = _Convolutions()
    net.weights["halves"] = np.int64([channels, channels])
    both = net.node("Relu", [net.conv("x", "both", channels, 2 * channels)], "bothr")
    net.nodes.append(helper.make_node("Split", [both, "halves"], ["left", "right"], axis=1))
    # The kernel just ahead writes the whole map, and this one adds what begins in its middle.
    early = net.node("Relu", [net.node("Add", [net.conv("x", "first", channels, channels), "right"], "e")], "early")
    h = net.node("Relu", [net.conv(early, "m1", channels, channels, 3)], "m1r")
    inner = net.node("Add", [net.conv(h, "m2", channels, channels, 3, gain=0.5), "right"], "inner")
    net.conv(net.node("Concat", ["left", "right", inner], "all", axis=1), "y", 3 * channels, channels)
    shape = [1, channels, side, side]
    return _model(net.nodes, [value("x", shape)], [value("y", shape)], net.weights)


def around(channels: int = 256, side: int = 28) -> bytes:
    """x [1, C, S, S] is added to two convolutions of itself."""
    net = _Convolutions()
    h = net.node("Relu", [net.conv("x", "one", channels, channels, 3)], "oner")
    net.node("Add", [net.conv(h, "two", channels, channels, 3), "x"], "y")
    shape = [1, channels, side, side]
    return _model(net.nodes, [value("x", shape)], [value("y", shape)], net.weights)


def overflowing() -> bytes:
    """Conv ``first`` → a, an output too → Relu → r → Conv ``culprit`` → b, beyond fp16 → Conv → y; x [1, 3, 8, 8]."""
    rng = np.random.default_rng(0)
    weights = {
        name: (scale * rng.standard_normal((3, 3, 3, 3))).astype(np.float32)
        for name, scale in (("u", 1), ("v", 1e4), ("w", 1e-4))
    }
    nodes = [
        helper.make_node("Conv", ["x", "u"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["b"], name="culprit", pads=[1] * 4),
        helper.make_node("Conv", ["b", "w"], ["y"], pads=[1] * 4),
    ]
    x, a, y = (value(name, [1, 3, 8, 8]) for name in ("x", "a", "y"))
    return _model(nodes, [x], [a, y], weights)
