"""What TensorRT computes wrongly, written so that it computes it right: the same numbers by other nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def fp8_scales(proto: Any) -> list[str]:
    """Give the fp8 weights of convolutions a scale per output channel where they have one for all.

    TensorRT-RTX 1.6.1 leaves the scales out of the result where one scale serves the whole tensor, so that it
    saturates at 448; with the same scale once per channel it is exact (both measured on an H200).
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    changed = 0
    for node, weights in list(_one_scale(proto)):
        channels = int(weights.dims[0])
        scale, zero = node.input[1], node.input[2] if len(node.input) > 2 else ""
        old = next(tensor for tensor in proto.graph.initializer if tensor.name == scale)
        value = np.broadcast_to(numpy_helper.to_array(old).reshape(-1), channels)
        node.input[1] = f"{node.output[0]}_scale_per_channel"
        proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), node.input[1]))
        if zero:
            node.input[2] = f"{node.output[0]}_zero_point_per_channel"
            # fp8 has no zero points but 0, whose byte is 0
            proto.graph.initializer.append(
                TensorProto(name=node.input[2], data_type=weights.data_type, dims=[channels], raw_data=bytes(channels))
            )
        kept = [attribute for attribute in node.attribute if attribute.name != "axis"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("axis", 0)])
        changed += 1
    return [f"{changed} fp8 convolutions: the scale of the weights is written once per channel"] if changed else []


def _one_scale(proto: Any) -> Iterator[tuple[Any, Any]]:
    """The DequantizeLinear nodes of such weights, with the weights."""
    from onnx import TensorProto

    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    readers = {node.input[1] for node in proto.graph.node if node.op_type == "Conv" and len(node.input) > 1}
    for name in sorted(readers & makers.keys()):
        node = makers[name]
        weights, scale = (initializers.get(given) for given in node.input[:2])
        fp8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)
        if weights is None or scale is None or weights.data_type not in fp8:
            continue
        if not list(scale.dims) or list(scale.dims) == [1]:
            yield node, weights


def needed(proto: Any) -> bool:
    """True when :func:`fp8_scales` would change something."""
    return next(_one_scale(proto), None) is not None
