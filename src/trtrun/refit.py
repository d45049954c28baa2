"""New weights for an engine that was built to take them, all of them or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .cuda.memory import address_of
from .errors import RefitError
from .flavor import Flavor
from .plan import read_model_file


def refit(flavor: Flavor, engine: Any, name: str, weights: str | os.PathLike[str] | bytes | Mapping[str, Any]) -> None:
    """Replace the weights of an ``ICudaEngine``. Nothing of it may be running, and its device must be current.

    Everything is checked before the first weight changes: TensorRT collects new weights in its ``Refitter`` and
    applies them in one call. Raises RefitError and ModelFileError as :meth:`trtrun.Engine.refit` says.
    """
    if not (flavor.capabilities.has_refitter and engine.refittable):
        raise RefitError(
            f"{name} was not built to take new weights. Build it with BuildOptions(refittable=True) "
            "(trtrun build --refittable)."
        )
    module = flavor.module
    with flavor.logger.capture() as lines:
        refitter = module.Refitter(engine, flavor.logger.handle)
        known = set(refitter.get_all_weights())
        if isinstance(weights, Mapping):
            kept = _set_arrays(flavor, refitter, name, weights, known, lines)  # alive until they were applied
        else:
            kept = _set_from_onnx(flavor, refitter, name, weights, known, lines)
        missing = refitter.get_missing_weights()
        if missing:
            raise RefitError(
                f"{name} needs new values for {sorted(missing)} too, because they were combined with the ones given. "
                "Nothing was changed. Give all of them.",
                log=lines,
            )
        if not refitter.refit_cuda_engine():
            raise RefitError(f"{flavor.title} could not refit {name}. The old weights are in use.", log=lines)
        del kept


def _set_arrays(
    flavor: Flavor, refitter: Any, name: str, weights: Mapping[str, Any], known: set[str], lines: list[str]
) -> list[Any]:
    unknown = sorted(weights.keys() - known)
    if unknown:
        raise RefitError(
            f"{name} has no refittable weights named {unknown}; it has {sorted(known)}. Nothing was changed."
        )
    kept = []
    for weight_name, value in weights.items():
        prototype = refitter.get_weights_prototype(weight_name)
        dtype = flavor.to_numpy_dtype(prototype.dtype, weight_name)
        array = np.ascontiguousarray(value)
        if array.dtype != dtype or array.size != prototype.size:
            raise RefitError(
                f"{name}: weights {weight_name!r} are {prototype.size} values of {dtype.name}, got {array.size} of "
                f"{array.dtype.name}. Nothing was changed."
            )
        holder = flavor.module.Weights(prototype.dtype, address_of(array), array.size)
        if not refitter.set_named_weights(weight_name, holder):
            raise RefitError(f"{flavor.title} refused the weights {weight_name!r} for {name}.", log=lines)
        kept.append((holder, array))
    return kept


def _set_from_onnx(
    flavor: Flavor,
    refitter: Any,
    name: str,
    model: str | os.PathLike[str] | bytes,
    known: set[str],
    lines: list[str],
) -> list[Any]:
    if not flavor.capabilities.has_onnx_refitter:
        raise RefitError(
            f"{flavor.title} has no ONNX parser. Give the weights as arrays by name; {name} has {sorted(known)}."
        )
    data = model if isinstance(model, bytes) else read_model_file(model)
    refitter_of_onnx = flavor.module.OnnxParserRefitter(refitter, flavor.logger.handle)
    path = None if isinstance(model, bytes) else os.fspath(model)  # external data lies beside it
    if not refitter_of_onnx.refit_from_bytes(data, path):
        errors = [refitter_of_onnx.get_error(i).desc() for i in range(refitter_of_onnx.num_errors)]
        what = "this model" if path is None else path
        raise RefitError(
            f"the weights of {what} do not fit {name}: {'; '.join(errors) or 'TensorRT gave no reason'}. Its "
            f"refittable weights are {sorted(known)}. Nothing was changed.",
            log=lines,
        )
    return [data, refitter_of_onnx]
