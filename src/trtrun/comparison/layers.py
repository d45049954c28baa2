"""Every intermediate tensor of two models: marked as outputs in batches, run, compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..building.onnx_check import check_model
from ..building.onnx_file import add_external_data, read_model
from ..errors import OnnxError, TrtrunError

Run = Callable[[Path], Mapping[str, Any]]  # runs a marked model and returns its outputs

_FIRST_BATCH = 16  # tensors; each later batch is sized by the bytes of those before
_LARGEST_BATCH = 64
_BATCH_BYTES = 512 << 20


@dataclass(frozen=True)
class Layer:
    """A node of an ONNX graph and one tensor it computes."""

    index: int  # position among the nodes, which ONNX keeps in topological order
    node: str  # its name, empty where the exporter gave none
    operator: str
    tensor: str
    inputs: tuple[str, ...]  # names of the tensors it reads, weights included

    def __str__(self) -> str:
        name = f"{self.node!r} " if self.node else ""
        return f"node {self.index} {name}({self.operator}) → {self.tensor!r}"


class MarkedModel:
    """An ONNX model of which any intermediate tensors can be made the outputs.

    It is marked as ``graph`` where that is given: changed, as :func:`trtrun.building.graph.prepare` returns it. The
    weights are written into ``folder`` once; each marked model beside them is only the graph.
    Nodes inside the branches of If and the bodies of Loop and Scan are not looked into.

    Raises what :func:`trtrun.building.onnx_check.check_model` raises.
    """

    def __init__(self, model: str | os.PathLike[str], folder: Path, graph: bytes | None = None) -> None:
        check_model(model)  # onnx's own inference of types would follow functions that call themselves for ever
        from onnx import external_data_helper

        self._proto: Any = read_model(model if graph is None else graph)
        add_external_data(self._proto, model)
        try:
            external_data_helper.convert_model_to_external_data(self._proto, location="weights.bin")
            folder.mkdir(parents=True, exist_ok=True)
            external_data_helper.write_external_data_tensors(self._proto, os.fspath(folder))
        except Exception as error:  # protobuf's errors share no base with onnx's
            raise OnnxError(f"the weights of {os.fspath(model)} cannot be written to {folder}: {error}") from error
        self._folder = folder
        self._types = _types(self._proto)
        self.layers = [
            Layer(index, node.name, node.op_type, name, tuple(filter(None, node.input)))
            for index, node in enumerate(self._proto.graph.node)
            if node.op_type != "Constant"
            for name in node.output
            if name
        ]

    def with_outputs(self, names: Sequence[str]) -> Path:
        """Write the model with these tensors as its only outputs, so that nothing else needs to be computed."""
        import onnx

        outputs = self._proto.graph.output
        original = list(outputs)
        try:
            del outputs[:]
            for name in names:
                # TensorRT wants the type to be declared. A shape would only be in the way of other input shapes.
                value = onnx.ValueInfoProto(name=name)
                if name in self._types:
                    value.type.tensor_type.elem_type = self._types[name]
                outputs.append(value)
            path = self._folder / "marked.onnx"
            path.write_bytes(self._proto.SerializeToString())
        finally:
            del outputs[:]
            outputs.extend(original)
        return path


def _types(proto: Any) -> dict[str, int]:
    """ONNX element types of the tensors in the main graph, as far as they can be inferred."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return {name: kind for name, kind in kinds.items() if kind}


def values_in_batches(
    tensors: Sequence[str], a: tuple[MarkedModel, Run], b: tuple[MarkedModel, Run], failures: dict[str, str]
) -> Iterator[tuple[str, Any, Any]]:
    """Each tensor's name and its value in both models, in the order given.

    A batch that one of the models cannot be run with is halved until the tensors that cannot be outputs are found;
    they are put into ``failures`` with the reason.
    """
    position, size = 0, _FIRST_BATCH
    while position < len(tensors):
        batch = tensors[position : position + size]
        position += len(batch)
        count = taken = 0
        for name, value_a, value_b in _values(batch, a, b, failures):
            count, taken = count + 1, taken + value_a.nbytes + value_b.nbytes
            yield name, value_a, value_b
        if count:
            size = max(1, min(_LARGEST_BATCH, int(_BATCH_BYTES * count / max(taken, 1))))


def _values(
    batch: Sequence[str], a: tuple[MarkedModel, Run], b: tuple[MarkedModel, Run], failures: dict[str, str]
) -> Iterator[tuple[str, Any, Any]]:
    try:
        values_a, values_b = (run(model.with_outputs(batch)) for model, run in (a, b))
    except TrtrunError as error:
        if len(batch) == 1:
            failures[batch[0]] = error.message.splitlines()[0]
            return
        half = len(batch) // 2
        yield from _values(batch[:half], a, b, failures)
        yield from _values(batch[half:], a, b, failures)
        return
    for name in batch:
        yield name, np.asarray(values_a[name]), np.asarray(values_b[name])
