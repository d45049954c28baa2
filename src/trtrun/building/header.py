"""The exporter's metadata of an ONNX file, in front of the engine that is built from it."""

from __future__ import annotations

import os
from typing import Any

from ..errors import OnnxError
from ..plan import onnx_metadata, with_header

# What tasks of vision read. Metadata without any of these stays in the ONNX file: nobody here would miss it, and
# trtexec and Triton's TensorRT backend read no plan that something stands in front of.
_READ = {"character", "head", "imgsz", "kpt_shape", "names", "preprocess", "stride", "task"}


def with_metadata_of(model: str | os.PathLike[str] | bytes, plan: bytes) -> bytes:
    """The plan with the model's metadata in front, as Ultralytics writes it; as it is where tasks read none of it.

    Raises OnnxError for a model that cannot be read any more, and PlanError for more metadata than a header takes.
    """
    import onnx  # check_model has been here and says what to install

    try:
        proto = (
            onnx.load_model_from_string(model)
            if isinstance(model, bytes)
            else onnx.load(os.fspath(model), load_external_data=False)
        )
    except Exception as error:  # protobuf's errors share no base with onnx's
        name = "this model" if isinstance(model, bytes) else os.fspath(model)
        raise OnnxError(f"{name} cannot be read any more ({error}). Do not change it while it is built.") from error
    metadata: dict[str, Any] = onnx_metadata({entry.key: entry.value for entry in proto.metadata_props})
    return with_header(plan, metadata) if _READ & metadata.keys() else plan
