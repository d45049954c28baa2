"""Sessions that remember: outputs of one request are inputs of the next, and never leave the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda.check import translated
from .cuda.memory import address_of, copy_async
from .route import most_bytes
from .runner import StatefulRunner, check_pairs, initial_state
from .session import Held, Session
from .tensor_spec import Shape

if TYPE_CHECKING:
    from .engine import Engine
    from .route import Route


class StatefulSession(StatefulRunner, Session):  # StatefulRunner first: its clone() and state() refuse
    """A session over an engine whose ``state`` inputs get the outputs of the request before.

    An output that TensorRT writes into its input's own memory (a KV cache) costs nothing; any other is copied within
    the GPU, in the same CUDA graph as the request. Where the state grows (``present`` is longer than ``past``), memory
    is reserved for the largest shape that the profiles allow. The request that outgrows it still gives its outputs;
    the next raises ShapeError, as :meth:`read_state` does, until :meth:`reset`.
    """

    def __init__(
        self,
        engine: Engine,
        pairs: Mapping[str, str],
        *,
        initial: Mapping[str, Any] | None = None,
        cuda_graph: bool = True,
        profile: int | None = None,
    ) -> None:
        check_pairs(engine.inputs, engine.outputs, pairs)
        first = initial_state(engine.inputs, pairs, initial)
        self._state = MappingProxyType(dict(pairs))
        self._held: dict[str, Held] = {}
        self._set_specs(engine.inputs, engine.outputs, pairs)
        super().__init__(engine, cuda_graph=cuda_graph, profile=profile)
        try:
            self._set(first)
        except BaseException:
            self.close()
            raise

    def reset(self, initial: Mapping[str, Any] | None = None) -> None:
        first = initial_state(self.engine.inputs, self._state, initial)
        with self._lock:
            self._check_idle()
            self._set(first)

    def read_state(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        with self._lock:
            self._check_idle()
            arrays = {}
            with self._device, translated("read the state"):
                self._settle()
                for name, held in self._held.items():
                    self.engine.inputs[name].check_shape(held.shape)  # else it was not kept
                    array = arrays[name] = np.empty(held.shape, held.dtype)
                    if array.nbytes:
                        copy_async(address_of(array), self._buffers.on_gpu(name, 0), array.nbytes, self._handle)
                self._stream.sync()
            return arrays

    def _set(self, values: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> None:
        with self._device, translated("set the state"):
            self._settle()
            for name, array in values.items():
                address = self._buffers.on_gpu(name, most_bytes(self.engine.inputs[name]))
                if array.nbytes:
                    copy_async(address, address_of(array), array.nbytes, self._handle)
                self._held[name] = Held(array.shape, array.dtype)
            self._stream.sync()

    def _add_state(self, arrays: list[Any], shapes: list[Shape]) -> None:
        for index, spec in enumerate(self._specs):
            held = self._held.get(spec.name)
            if held is not None:
                arrays.insert(index, held)
                shapes.insert(index, held.shape)

    def _advance(self, route: Route) -> None:
        for name, output in self._state.items():
            shape, held = route.output_shapes[output], self._held[name]
            if shape != held.shape:
                self._held[name] = Held(shape, held.dtype)
