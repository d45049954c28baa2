"""The benchmark networks as ONNX, written with onnx.helper so that anybody can make them anywhere.

Topologies are torchvision's ResNet-50 (He et al., arXiv:1512.03385) and MobileNetV3-Small (Howard et al.,
arXiv:1905.02244) with batch normalization folded into the convolutions. Weights are random (He initialization, fixed
seed): speed does not depend on their values, and this scale keeps fp16 activations finite.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

_TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}


class _Network:
    """Collects nodes and weights of one dtype."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.nodes: list = []
        self.weights: list = []
        self._rng = np.random.default_rng(0)
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def weight(self, array: np.ndarray) -> str:
        name = self.name()
        self.weights.append(numpy_helper.from_array(array.astype(self.dtype), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], **attributes: object) -> str:
        output = self.name()
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def conv(
        self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, gain: float = 2.0
    ) -> str:
        fan_in = cin // groups * kernel * kernel
        weight = self._rng.standard_normal((cout, cin // groups, kernel, kernel)) * np.sqrt(gain / fan_in)
        bias = self._rng.standard_normal(cout) * 0.1
        pad = kernel // 2
        return self.node(
            "Conv",
            [x, self.weight(weight), self.weight(bias)],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )

    def linear(self, x: str, cin: int, cout: int) -> str:
        weight = self._rng.standard_normal((cout, cin)) / np.sqrt(cin)
        return self.node("Gemm", [x, self.weight(weight), self.weight(np.zeros(cout))], transB=1)

    def model(self, output: str, inputs: Sequence[int | str], *classes: int) -> bytes:
        assert self.nodes[-1].output[0] == output
        self.nodes[-1].output[0] = "logits"
        kind = _TYPES[self.dtype]
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info("images", kind, inputs)],
            [helper.make_tensor_value_info("logits", kind, [inputs[0], *classes])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        serialized: bytes = model.SerializeToString()
        return serialized


def tiny(batch: int | None = 1) -> bytes:
    """Five nodes: images fp32 [N, 3, 32, 32] (12 KB) to logits [N, 10] (40 B)."""
    net = _Network("float32")
    x = net.node("Relu", [net.conv("images", 3, 8, 3, 2)])
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    return net.model(net.linear(x, 8, 10), [batch or "N", 3, 32, 32], 10)


def nothing(batch: int | None = 1, dtype: str = "float16") -> bytes:
    """No network: of images [N, 3, 224, 224] the first thousand values are the logits [N, 1000]."""
    net = _Network(dtype)
    for name, values in (("starts", [0, 0, 0]), ("ends", [1, 5, 200]), ("axes", [1, 2, 3])):
        net.weights.append(numpy_helper.from_array(np.int64(values), name))
    x = net.node("Slice", ["images", "starts", "ends", "axes"])
    return net.model(net.node("Flatten", [x]), [batch or "N", 3, 224, 224], 1000)


def resnet50(batch: int | None = 1, dtype: str = "float16", side: int = 224, enlarge: int = 1) -> bytes:
    """ResNet-50: images [N, 3, side, side], which it enlarges first, to logits [N, 1000]."""
    net = _Network(dtype)
    x = "images"
    if enlarge > 1:  # much to compute for what is small to send
        net.weights.append(numpy_helper.from_array(np.float32([1, 1, enlarge, enlarge]), "scales"))
        x = net.node("Resize", [x, "", "scales"], mode="nearest")
    x = net.node("Relu", [net.conv(x, 3, 64, 7, 2)])
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, blocks, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            h = net.node("Relu", [net.conv(x, channels, width, 1)])
            h = net.node("Relu", [net.conv(h, width, width, 3, stride)])
            # The residual branch is damped, as trained networks do: sixteen undamped sums would grow without bound.
            h = net.conv(h, width, 4 * width, 1, gain=0.2)
            if block == 0:
                x = net.conv(x, channels, 4 * width, 1, stride, gain=1.0)
            x = net.node("Relu", [net.node("Add", [h, x])])
            channels = 4 * width
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    return net.model(net.linear(x, 2048, 1000), [batch or "N", 3, side, side], 1000)


# kernel, expansion, output channels, squeeze-and-excitation, hard-swish (else ReLU), stride
_MOBILENET_V3_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def mobilenet_v3_small(batch: int | None = 1, dtype: str = "float16") -> bytes:
    """MobileNetV3-Small: images [N, 3, 224, 224] to logits [N, 1000]."""
    net = _Network(dtype)

    def activation(x: str, hard_swish: bool) -> str:
        return net.node("HardSwish" if hard_swish else "Relu", [x])

    x = activation(net.conv("images", 3, 16, 3, 2), True)
    channels = 16
    for kernel, expansion, out, squeeze, hard_swish, stride in _MOBILENET_V3_SMALL:
        h = x
        if expansion != channels:
            h = activation(net.conv(h, channels, expansion, 1), hard_swish)
        h = activation(net.conv(h, expansion, expansion, kernel, stride, groups=expansion), hard_swish)
        if squeeze:
            reduced = max(8, (expansion // 4 + 4) // 8 * 8)
            s = net.node("GlobalAveragePool", [h])
            s = net.node("Relu", [net.conv(s, expansion, reduced, 1)])
            s = net.node("HardSigmoid", [net.conv(s, reduced, expansion, 1)], alpha=1 / 6, beta=0.5)
            h = net.node("Mul", [h, s])
        h = net.conv(h, expansion, out, 1, gain=1.0)
        x = net.node("Add", [h, x]) if stride == 1 and out == channels else h
        channels = out
    x = activation(net.conv(x, 96, 576, 1), True)
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    x = activation(net.linear(x, 576, 1024), True)
    return net.model(net.linear(x, 1024, 1000), [batch or "N", 3, 224, 224], 1000)


def yolo(batch: int | None = 1, dtype: str = "float16", size: int = 640) -> bytes:
    """A detector of YOLOv8n's size (8.5 GFLOPs at 640): images [N, 3, 640, 640] to predictions [N, 84, 8400].

    A residual backbone of five stages and a head at strides 8, 16 and 32 whose predictions are centre x, centre y,
    width and height in pixels, then 80 probabilities. The weights are random: choose the score threshold by quantile.
    """
    net = _Network(dtype)
    rows = batch or "N"

    def block(x: str, channels: int) -> str:
        h = net.node("Relu", [net.conv(x, channels, channels, 3)])
        return net.node("Relu", [net.node("Add", [net.conv(h, channels, channels, 3, gain=0.2), x])])

    x = net.node("Relu", [net.conv("images", 3, 16, 3, 2)])
    channels = 16
    features = []
    for width, blocks in ((32, 2), (64, 2), (128, 2), (256, 1)):
        x = net.node("Relu", [net.conv(x, channels, width, 3, 2)])
        for _ in range(blocks):
            x = block(x, width)
        channels = width
        features.append((x, width))
    flat = net.name()
    net.weights.append(numpy_helper.from_array(np.array([0, 84, -1]), flat))
    maps, cells, strides = [], [], []
    for (x, width), stride in zip(features[1:], (8, 16, 32), strict=True):
        h = net.node("Relu", [net.conv(x, width, 64, 3)])
        maps.append(net.node("Reshape", [net.conv(h, 64, 84, 1, gain=1.0), flat]))
        side = size // stride
        down, right = np.mgrid[:side, :side]
        cells.append(np.stack([right, down]).reshape(2, -1))
        strides.append(np.full(side * side, stride))
    unit = net.node("Sigmoid", [net.node("Concat", maps, axis=2)])
    cell, stride_row = np.concatenate(cells, axis=1), np.concatenate(strides)
    scale = np.ones((1, 84, len(stride_row)))
    scale[:, :2], scale[:, 2:4] = 2 * stride_row, 8 * stride_row
    shift = np.zeros_like(scale)
    shift[:, :2] = (cell - 0.5) * stride_row
    scaled = net.node("Mul", [unit, net.weight(scale)])
    return net.model(net.node("Add", [scaled, net.weight(shift)]), [rows, 3, size, size], 84, len(stride_row))


if __name__ == "__main__":
    for make in (tiny, resnet50, mobilenet_v3_small, yolo):
        sys.stdout.write(f"{make.__name__}: {len(make()):,} bytes\n")
