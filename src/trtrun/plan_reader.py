"""A plan that TensorRT reads a piece at a time, so that host memory holds no copy of it but TensorRT's own."""

from __future__ import annotations

import functools
from typing import Any

from .plan import PIECE, ModelData


class PlanReader:
    """TensorRT's ``IStreamReaderV2`` over the bytes of a plan.

    TensorRT asks for as much as the whole plan at once, in host or device memory. Its bindings, from 10.9 on, copy
    there what :meth:`read` returns, and call it again until they have all that was asked for.

    Args:
        data: what holds the plan, from ``start`` to its end.
    """

    def __init__(self, data: ModelData, start: int) -> None:
        self._data = data
        self._start = start
        self._position = start
        self._error: BaseException | None = None

    def deserialize(self, module: Any, runtime: Any) -> Any:
        """The ``ICudaEngine`` that a runtime of this TensorRT module makes of the plan; None where it refuses.

        Raises ModelFileError where the file cannot be read any more.
        """
        engine = runtime.deserialize_cuda_engine(_bridge(module)(self))
        if self._error is not None:
            raise self._error
        return engine

    def read(self, count: int) -> bytes | memoryview:
        """The next bytes: at most ``count``, at most a piece. None at the end and after an error: TensorRT gives up."""
        if self._error is not None:
            return b""
        try:
            part = self._data[self._position : self._position + min(count, PIECE)]
        except BaseException as error:  # KeyboardInterrupt too: the bindings would print it and go on
            self._error = error
            return b""
        self._position += len(part)
        return part

    def seek(self, offset: int, where: str) -> bool:
        """Go to ``offset`` from the plan's start (SET), from here (CUR) or, negative, from the plan's end (END)."""
        position = {"SET": self._start, "CUR": self._position, "END": len(self._data)}[where] + offset
        if position < self._start:
            return False
        self._position = position  # behind the end there is nothing to read
        return True


@functools.cache
def _bridge(module: Any) -> type:
    class Bridge(module.IStreamReaderV2):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self, reader: PlanReader) -> None:
            module.IStreamReaderV2.__init__(self)
            self._reader = reader

        def read(self, num_bytes: int, stream: int) -> bytes | memoryview:
            return self._reader.read(num_bytes)

        def seek(self, offset: int, where: Any) -> bool:
            return self._reader.seek(offset, where.name)

    return Bridge
