"""The exporter's metadata of an ONNX file, in front of the engine that is built from it."""

from __future__ import annotations

import os
from typing import Any

from ..errors import OnnxError
from ..plan import onnx_metadata

# What tasks of vision read. Metadata without any of these stays in the ONNX file: nobody here would miss it, and
# trtexec and Triton's TensorRT backend read no plan that something stands in front of.
_READ = {"character", "head", "imgsz", "kpt_shape", "names", "preprocess", "stride", "task"}


def metadata_of(model: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    """The model's metadata as JSON, to stand in front of its plan; empty where tasks read none of it.

    Raises OnnxError for what is no ONNX model.
    """
    import onnx  # check_model has been here and says what to install

    try:
        proto = (
            onnx.load_model_from_string(model)
            if isinstance(model, bytes)
            else onnx.load(os.fspath(model), format="protobuf", load_external_data=False)
        )
    except Exception as error:  # protobuf's errors share no base with onnx's
        name = "this model" if isinstance(model, bytes) else os.fspath(model)
        raise OnnxError(f"{name} is not a valid ONNX model: {error}") from error
    metadata: dict[str, Any] = onnx_metadata({entry.key: entry.value for entry in proto.metadata_props})
    return metadata if _READ & metadata.keys() else {}
