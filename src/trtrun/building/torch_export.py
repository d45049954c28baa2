"""A torch module as ONNX, through torch's own exporter."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BuildError, MissingPackageError


def export_module(module: Any, example_inputs: Sequence[Any], *, dynamic_batch: bool = True) -> bytes:
    """Export a ``torch.nn.Module`` with ``torch.onnx.export`` and return the ONNX model, weights inside.

    Args:
        module: exported as it stands: call ``eval()`` first if that is meant.
        example_inputs: one tensor per argument of ``forward``; inputs are named after those.
        dynamic_batch: the first dimension of every input may vary. The example's should then be larger than 1, which
            torch otherwise takes for a constant.

    Raises:
        MissingPackageError: torch or its exporter's package is not installed.
        BuildError: torch cannot export the module; with its reason.
    """
    try:
        import onnxscript  # noqa: F401  # torch's exporter imports it, and says less well that it is missing
        import torch
    except ImportError as error:
        raise MissingPackageError(
            f"exporting a torch module needs torch and onnxscript ({error}). Run: pip install 'trtrun[torch]'"
        ) from error
    arguments = tuple(example_inputs)
    shapes = None
    if dynamic_batch:
        shapes = tuple({0: torch.export.Dim.DYNAMIC} if tensor.ndim else None for tensor in arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                module, arguments, path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
            )
        except Exception as error:  # whatever tracing the module raises
            raise BuildError(f"torch cannot export {type(module).__name__} to ONNX: {error}") from error
        return path.read_bytes()
