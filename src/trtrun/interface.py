"""What an ONNX model takes and gives, as it declares it, and where an engine takes or gives something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .tensor_spec import Shape, TensorSpec, shape_text

# Those that are called the same in an engine. What is missing here (double, strings, 8-bit floats) is not compared.
_DTYPES = {
    "FLOAT": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_FLOATS = {"float32", "float16", "bfloat16"}


@dataclass(frozen=True)
class DeclaredTensor:
    """An input or output as an ONNX model declares it; None where it says nothing, -1 where a dimension is dynamic."""

    name: str
    dtype: str | None
    shape: Shape | None

    def __str__(self) -> str:
        return f"{self.name}: {_text(self.dtype, self.shape)}"


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of an ONNX model."""

    inputs: tuple[DeclaredTensor, ...]
    outputs: tuple[DeclaredTensor, ...]

    @classmethod
    def of_onnx(cls, proto: Any) -> Interface:
        """Of a ``ModelProto``, without the weights that old exporters list among the inputs."""
        from .building.rewrites import graph_inputs

        return cls(tuple(map(_declared, graph_inputs(proto.graph))), tuple(map(_declared, proto.graph.output)))

    @property
    def is_fixed(self) -> bool:
        """Whether no input has a dynamic dimension but the first."""
        return all(tensor.shape is not None and -1 not in tensor.shape[1:] for tensor in self.inputs)

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[Mapping[str, Any]]]) -> Interface:
        """What :meth:`as_json` gave. Raises KeyError, TypeError and ValueError for anything else."""

        def tensor(fields: Mapping[str, Any]) -> DeclaredTensor:
            shape = fields["shape"]
            if not (shape is None or (type(shape) is list and all(type(size) is int for size in shape))):
                raise TypeError(f"{shape!r} is no shape"[:200])
            if fields["dtype"] is not None and type(fields["dtype"]) is not str:
                raise TypeError(f"{fields['dtype']!r} is no dtype"[:200])
            return DeclaredTensor(str(fields["name"]), fields["dtype"], None if shape is None else tuple(shape))

        return cls(tuple(map(tensor, value["inputs"])), tuple(map(tensor, value["outputs"])))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> list[str]:
        """Where an engine with these specs cannot be of this model: a sentence each.

        A dimension that is dynamic on one side fits any, and the floats of 16 and 32 bits fit each other, which
        ``BuildOptions.convert_io`` exchanges. An input that the engine lacks is no difference: TensorRT leaves out what
        nothing reads.
        """
        found = [*_differences("input", self.inputs, inputs), *_differences("output", self.outputs, outputs)]
        missing = [tensor.name for tensor in self.outputs if tensor.name not in outputs]
        return found + [f"the engine has no output {name!r}, the ONNX model has one" for name in missing]


def _differences(kind: str, declared: Iterable[DeclaredTensor], specs: Mapping[str, TensorSpec]) -> list[str]:
    by_name = {tensor.name: tensor for tensor in declared}
    found = []
    for name, spec in specs.items():
        if name not in by_name:
            found.append(f"the engine has the {kind} {name!r}, the ONNX model has {list(by_name)}")
            continue
        dtype, shape = by_name[name].dtype, by_name[name].shape
        fits = shape is None or (
            len(shape) == len(spec.shape)
            and all(-1 in pair or pair[0] == pair[1] for pair in zip(shape, spec.shape, strict=True))
        )
        is_float = {dtype, spec.dtype.name} <= _FLOATS
        if not (dtype in (None, spec.dtype.name) or is_float) or not fits:
            found.append(
                f"{kind} {name!r} is {_text(spec.dtype.name, spec.shape)} in the engine and {_text(dtype, shape)} in "
                "the ONNX model"
            )
    return found


def _declared(value: Any) -> DeclaredTensor:
    import onnx

    tensor = value.type.tensor_type
    dtype = _DTYPES.get(onnx.TensorProto.DataType.Name(tensor.elem_type))
    if not tensor.HasField("shape"):
        return DeclaredTensor(value.name, dtype, None)
    sizes = [dim.dim_value for dim in tensor.shape.dim]  # some exporters write 0 or -1 where one is dynamic
    return DeclaredTensor(value.name, dtype, tuple(size if size > 0 else -1 for size in sizes))


def _text(dtype: str | None, shape: Shape | None) -> str:
    sizes = "of any shape" if shape is None else shape_text(shape)
    return f"{dtype or 'another dtype'} {sizes}"
