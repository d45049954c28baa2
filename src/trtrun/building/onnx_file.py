"""An ONNX file, or its bytes, as a message: read in one way, whatever it is read for."""

from __future__ import annotations

import os
from typing import Any

from ..errors import MissingPackageError, OnnxError
from ..plan import is_plan, onnx_metadata, read_model_file

_LFS_POINTER = b"version https://git-lfs"


def model_name(model: str | os.PathLike[str] | bytes) -> str:
    """What messages call a model."""
    return "this model" if isinstance(model, bytes) else os.fspath(model)


def read_model(model: str | os.PathLike[str] | bytes, *, external_data: bool = False) -> Any:
    """The ``onnx.ModelProto`` of an ONNX file, whatever its name ends in, or of its bytes; not checked.

    Args:
        external_data: read the files beside it too, so that the message holds the weights.

    Raises:
        ModelFileError: the file cannot be read. OnnxError: it is no ONNX model, or its external data cannot be read.
        MissingPackageError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            f"an ONNX model is read with onnx ({error}). Run: pip install 'trtrun[onnx]'"
        ) from error
    name = model_name(model)
    data = model if isinstance(model, bytes) else read_model_file(model)
    if not data:
        raise OnnxError(f"{name} is empty: 0 bytes. Copy or export it again.")
    if is_plan(data[:16]):
        raise OnnxError(
            f"{name} is an engine, a TensorRT plan, and an ONNX model is needed here. Name the ONNX file that it was "
            "built from; the engine can be run as it is, and trtrun inspect looks into it."
        )
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors share no base with onnx's
        raise not_onnx(name, data[:64], error) from error
    if external_data:
        add_external_data(proto, model)
    return proto


def proto_metadata(proto: Any) -> dict[str, Any]:
    """The metadata of an ``onnx.ModelProto``, as :func:`trtrun.plan.onnx_metadata` gives it."""
    return onnx_metadata({entry.key: entry.value for entry in proto.metadata_props})


def add_external_data(proto: Any, model: str | os.PathLike[str] | bytes) -> None:
    """Read the external data of ``model`` into its message; bytes alone have none. Raises OnnxError."""
    if isinstance(model, bytes):
        return
    from onnx import external_data_helper

    try:
        external_data_helper.load_external_data_for_model(proto, os.path.dirname(os.path.abspath(model)))
    except Exception as error:  # onnx's own, protobuf's and OSError
        raise OnnxError(f"the external data of {model_name(model)} cannot be read: {error}") from error


def not_onnx(name: str, head: bytes, error: Exception) -> OnnxError:
    """What to raise for a model that begins with ``head`` and is no protobuf message; ``error`` is protobuf's own."""
    if head.startswith(_LFS_POINTER):
        return OnnxError(f"{name} is no ONNX model but the Git LFS pointer to one. Run: git lfs pull.")
    if head.startswith(b"PK"):
        return OnnxError(f"{name} is no ONNX model but a ZIP archive (a torch .pt or .pth?). Export the model to ONNX.")
    return OnnxError(
        f"{name} cannot be parsed: it is not an ONNX model, or not all of one ({error}). Copy or export it again."
    )
