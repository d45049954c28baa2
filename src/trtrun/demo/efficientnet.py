"""EfficientNet-Lite0 as ONNX from a weights file of PyTorch, without PyTorch.

The topology is EfficientNet-B0's (Tan and Le, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, whose
stem and head are not scaled, as TensorFlow's EfficientNet-Lite has it. Batch normalization stays beside the
convolutions: folded into them it would spread their weights too far for one fp8 scale. The network takes RGB as
(x - 127) / 128.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
_EPSILON = 1e-3  # of the batch normalization, as TensorFlow trained it
# kernel, stride, expansion, output channels, blocks
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class _Unpickler(pickle.Unpickler):
    """Admits what a dictionary of tensors consists of and nothing else: a pickle could call any function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a dictionary of tensors")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return kind, key


def read_weights(path: Path) -> dict[str, Array]:
    """The tensors of a file that ``torch.save`` wrote before version 1.6: pickles, and then the storages one by one.

    Raises ValueError for another file, and UnpicklingError for one that holds more than tensors.
    """

    def load(file: BinaryIO) -> Any:
        return _Unpickler(file).load()

    with path.open("rb") as file:
        if load(file) != _MAGIC:
            raise ValueError(f"{path} was not written by torch.save before version 1.6")
        load(file), load(file)  # the version, and facts about the machine
        tensors = load(file)
        kinds = {key: kind for (kind, key), *_ in tensors.values()}
        storages = {}
        for key in load(file):
            dtype = np.dtype(_DTYPES[kinds[key]])
            count = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    found = {}
    for name, ((_, key), offset, size, stride) in tensors.items():
        storage = storages[key]
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if not 0 <= offset <= last < len(storage) or min(stride, default=0) < 0:
            raise ValueError(f"{name} in {path} reaches beyond its storage")
        # The convolutions were converted from TensorFlow and kept its order of axes.
        strides = tuple(s * storage.itemsize for s in stride)
        found[name] = np.ascontiguousarray(np.lib.stride_tricks.as_strided(storage[offset:], size, strides))
    return found


def efficientnet_lite0(weights: dict[str, Array], batch: int = 1) -> bytes:
    """images [batch, 3, 224, 224] to logits [batch, 1000]. Raises ValueError for weights of another network."""
    nodes: list[Any] = []
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in (("zero", 0), ("six", 6))]
    used = set()

    def take(name: str) -> Array:
        used.add(name)
        return weights[name]

    def conv(x: str, layer: str, norm: str, stride: int = 1, *, depthwise: bool = False, relu: bool = True) -> str:
        weight = take(f"{layer}.weight")
        for part in ("weight", "bias", "running_mean", "running_var"):
            constants.append(numpy_helper.from_array(take(f"{norm}.{part}"), f"{norm}.{part}"))
        constants.append(numpy_helper.from_array(weight, f"{layer}.w"))
        kernel = weight.shape[2]
        padding = kernel - stride  # TensorFlow's "same"; all sizes before a stride of 2 are even
        before, after = padding // 2, padding - padding // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{layer}.w"],
                [f"{layer}.c"],
                name=layer,
                kernel_shape=[kernel, kernel],
                strides=[stride, stride],
                pads=[before, before, after, after],
                group=len(weight) if depthwise else 1,
            )
        )
        inputs = [f"{layer}.c", *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]
        nodes.append(
            helper.make_node("BatchNormalization", inputs, [f"{layer}.y"], name=f"{layer}.norm", epsilon=_EPSILON)
        )
        if not relu:
            return f"{layer}.y"
        nodes.append(helper.make_node("Clip", [f"{layer}.y", "zero", "six"], [f"{layer}.r"], name=f"{layer}.relu6"))
        return f"{layer}.r"

    x = conv("images", "_conv_stem", "_bn0", 2)
    channels, index = 32, 0
    for kernel, first_stride, expansion, out, blocks in _STAGES:
        for number in range(blocks):
            block, stride = f"_blocks.{index}", first_stride if number == 0 else 1
            h = conv(x, f"{block}._expand_conv", f"{block}._bn0") if expansion > 1 else x
            h = conv(h, f"{block}._depthwise_conv", f"{block}._bn1", stride, depthwise=True)
            if weights[f"{block}._depthwise_conv.weight"].shape != (channels * expansion, 1, kernel, kernel):
                raise ValueError(f"{block} is not EfficientNet-Lite0's")
            h = conv(h, f"{block}._project_conv", f"{block}._bn2", relu=False)
            if stride == 1 and channels == out:
                nodes.append(helper.make_node("Add", [h, x], [f"{block}.sum"], name=f"{block}.add"))
                h = f"{block}.sum"
            x, channels, index = h, out, index + 1
    x = conv(x, "_conv_head", "_bn1")
    constants.append(numpy_helper.from_array(take("_fc.weight"), "_fc.w"))
    constants.append(numpy_helper.from_array(take("_fc.bias"), "_fc.b"))
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["features", "_fc.w", "_fc.b"], ["logits"], name="_fc", transB=1))
    left = {name for name in weights if not name.endswith("num_batches_tracked")} - used
    if left:
        raise ValueError(f"EfficientNet-Lite0 has no {sorted(left)}")
    graph = helper.make_graph(
        nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 1000])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized
