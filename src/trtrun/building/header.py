"""The exporter's metadata of an ONNX file, in front of the engine that is built from it."""

from __future__ import annotations

import os
from typing import Any

from .onnx_file import proto_metadata, read_model

# What tasks of vision read. Metadata without any of these stays in the ONNX file: nobody here would miss it, and
# trtexec and Triton's TensorRT backend read no plan that something stands in front of.
_READ = {"character", "head", "imgsz", "kpt_shape", "names", "preprocess", "stride", "task"}


def metadata_of(model: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    """The model's metadata as JSON, to stand in front of its plan; empty where tasks read none of it.

    Raises what :func:`trtrun.building.onnx_file.read_model` raises.
    """
    metadata = proto_metadata(read_model(model))
    return metadata if _READ & metadata.keys() else {}
