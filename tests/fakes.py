"""A runner without a backend, for what stands above the Runner contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from typing_extensions import Self

from trtrun.errors import ExecutionError
from trtrun.runner import OutputMode, Runner
from trtrun.tensor_spec import TensorSpec, TensorSpecs


class FakeRunner(Runner):
    """y = 2 x after ``latency`` seconds. A request whose first value is negative fails with ExecutionError."""

    made: list[FakeRunner]

    def __init__(self, latency: float = 0.0, made: list[FakeRunner] | None = None) -> None:
        self.latency = latency
        self.made = made if made is not None else []
        self.made.append(self)
        self.requests = 0
        self.in_flight = False
        self._closed = False

    @property
    def inputs(self) -> TensorSpecs:
        return TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1,))])

    @property
    def outputs(self) -> TensorSpecs:
        return TensorSpecs([TensorSpec("y", np.dtype(np.float32), (-1,))])

    @property
    def backend(self) -> str:
        return "fake"

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {}

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        return self.enqueue(inputs).result()

    def enqueue(self, inputs: Mapping[str, Any]) -> Future[dict[str, Any]]:
        self.check_open()
        self.inputs.check_names(inputs)
        self.inputs["x"].check_shape(np.shape(inputs["x"]))
        assert not self.in_flight, "two requests in flight on one runner"
        self.in_flight = True
        self.requests += 1
        x = np.array(inputs["x"])
        future: Future[dict[str, Any]] = Future()

        def finish() -> None:
            time.sleep(self.latency)
            self.in_flight = False
            if x[0] < 0:
                future.set_exception(ExecutionError(f"negative: {x[0]}"))
            else:
                future.set_result({"y": 2 * x})

        threading.Thread(target=finish).start()
        return future

    def clone(self) -> Self:
        return type(self)(self.latency, self.made)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
