"""Replay: a request like the one before it, with everything looked up: fill, launch, wait, copy out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Host, copy_out
from .buffers import Buffers
from .cuda.graph import Graph

if TYPE_CHECKING:
    from cuda.core import Stream

    from .tensor_spec import TensorSpec


class Replay:
    """What :meth:`Session.run <trtrun.session.Session.run>` does for NumPy arrays of known dtypes and shapes.

    Nothing of it is another way to run: these are the steps of the session without the questions that lead to them.
    The processor's caches are cold after it has waited for the GPU, and then what is asked in Python costs more than
    it seems: MEASURED.

    Args:
        specs, inputs: the inputs and the page-locked views to fill.
        outputs: the page-locked views to read.
        graph: copies the one in and the other out.
    """

    __slots__ = ("_buffers", "_graph", "_handle", "_inputs", "_names", "_outputs", "_stream")

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        inputs: list[Host],
        outputs: Mapping[str, Host | None],
        graph: Graph,
        stream: Stream,
        buffers: Buffers,
    ) -> None:
        self._names = dict.fromkeys(specs).keys()  # a dict's own keys compare in C
        self._inputs = [(name, view, view.dtype, view.shape) for name, view in zip(specs, inputs, strict=True)]
        self._outputs: list[tuple[str, Host]] = list(outputs.items())  # type: ignore[arg-type]  # no graph without
        self._graph = graph
        self._stream = stream
        self._handle = stream.handle
        self._buffers = buffers

    def run(self, inputs: Mapping[str, Any], copied: bool) -> dict[str, Host] | None:
        """The outputs, or the views of them; None for a request of another kind, of which nothing was enqueued."""
        if type(inputs) is not dict or inputs.keys() != self._names:
            return None
        for name, view, dtype, shape in self._inputs:
            array = inputs[name]
            if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                return None
            if array.base is None or not self._buffers.in_place(name, array, view):
                np.copyto(view, array)
        self._graph.launch(self._handle)
        self._stream.sync()
        return {name: copy_out(view) if copied else view for name, view in self._outputs}
