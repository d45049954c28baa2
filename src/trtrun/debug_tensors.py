"""Reading tensors inside a network: those that ``BuildOptions(debug_tensors=…)`` marked."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Host, as_host_array, nbytes_of
from .cuda.memory import address_of, copy_async
from .errors import ExecutionError, InputError
from .route import borrowed_route
from .tensor_spec import to_shape

if TYPE_CHECKING:
    from .engine import Engine


def debug_tensors(engine: Engine, inputs: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Host]:
    """Run one request and return tensors inside the network, as they were when they were computed.

    Args:
        engine: built with ``BuildOptions(debug_tensors=…)``.
        inputs: one array per input name.
        names: which of the marked tensors to read; None reads all of them.

    Raises:
        InputError: a name is not marked, or the inputs do not fit.
        ExecutionError: this flavour cannot, or the request failed.
    """
    if not engine.flavor.capabilities.has_debug_tensors:
        raise ExecutionError(f"{engine.flavor.title} has no debug tensors.")
    wanted = None if names is None else set(names)
    for name in wanted or ():
        if not engine.handle.is_debug_tensor(name):
            raise InputError(
                f"{name!r} was not marked for debugging when {engine.name} was built. "
                f"Build it with BuildOptions(debug_tensors=({name!r},))."
            )
    engine.inputs.check_names(inputs)
    arrays = {name: as_host_array(inputs[name], name) for name in engine.inputs}
    for name, spec in engine.inputs.items():
        spec.check_shape(arrays[name].shape)
        spec.check_dtype(arrays[name].dtype)
    found: dict[str, Host] = {}
    failures: list[Exception] = []
    module: Any = engine.flavor.module

    class Listener(module.IDebugListener):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            module.IDebugListener.__init__(self)

        def process_debug_tensor(self, addr: Any, location: Any, type: Any, shape: Any, name: str, stream: int) -> bool:
            try:  # nothing may be raised through TensorRT's C++ frames
                if wanted is None or name in wanted:
                    array = np.empty(to_shape(shape), engine.flavor.to_numpy_dtype(type, name))
                    nbytes = nbytes_of(array.shape, array.dtype)
                    if nbytes:
                        copy_async(address_of(array), _address(addr), nbytes, int(stream))
                    found[name] = array
            except Exception as error:
                failures.append(error)
                return False
            return True

    listener = Listener()

    def listen(context: Any) -> None:
        if not context.set_debug_listener(listener) or not context.set_all_tensors_debug_state(True):
            raise ExecutionError(f"{engine.flavor.title} does not let tensors of {engine.name} be debugged.")

    with borrowed_route(engine, arrays, listen) as (route, stream):
        try:
            route.execute(int(stream.handle))
            stream.sync()
        finally:
            if failures:  # TensorRT says only that it could not run
                raise ExecutionError(f"a debug tensor of {engine.name} could not be read: {failures[0]}") from failures[
                    0
                ]
    if not found or (wanted or set()) - found.keys():
        silent = sorted((wanted or set()) - found.keys())
        raise ExecutionError(
            f"{engine.flavor.title} ran {engine.name} and handed over {sorted(found) or 'no debug tensors'}"
            + (f", not {silent}" if silent else "")
            + ". TensorRT-RTX 1.6 takes the marks and never reports the tensors; make them outputs instead, or build "
            "with BuildOptions(debug_tensors=…) for the full TensorRT."
        )
    return found


def _address(pointer: Any) -> int:
    """The address in what the bindings pass: an int, or a capsule around the pointer."""
    if isinstance(pointer, int):
        return pointer
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return int(get(pointer, name(pointer)) or 0)
