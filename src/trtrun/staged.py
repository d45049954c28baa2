"""Sessions with steps of their own on the GPU before and after the engine, in one CUDA graph with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .arrays import copy_out
from .errors import InputError
from .runner import OutputMode, Runner, Stages
from .session import Session

if TYPE_CHECKING:
    from .engine import Engine
    from .route import Route, Steps


def why_not(engine: Engine, stages: Stages) -> str | None:
    """Why this engine cannot have such stages; None when it can."""
    if set(engine.inputs) != stages.inputs:
        return f"it takes {engine.inputs!r}, of which only {sorted(stages.inputs)} are prepared on the GPU"
    for spec in (*engine.inputs.values(), *(engine.outputs[name] for name in stages.outputs)):
        if spec.format or spec.location == "host":
            return f"{spec.name!r} is no row-major array on the GPU"
    return None


class StagedSession(Session):
    """A session whose requests are what its stages take: they write all of the engine's inputs.

    What differs from request to request is copied ahead of the graph, and in it where the same copies come back.
    """

    _stages: Stages

    def __init__(self, engine: Engine, stages: Stages, *, cuda_graph: bool = True, profile: int | None = None) -> None:
        self._stages = stages
        super().__init__(engine, cuda_graph=cuda_graph, profile=profile)

    def _start(
        self, inputs: Mapping[str, Any], to_host: bool, timed: bool, kept: bool = True
    ) -> tuple[Route, Steps, list[Any]]:
        assert self._opened is not None
        key, copies = self._opened.fill(inputs, self._at_handle, helpers=self.copy_helpers)
        route = self._route(key, [None] * len(key))
        steps: Steps = (0, to_host, copies)
        self._launch(route, steps)
        return route, steps, []

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        if outputs == "device":
            raise InputError('the results of stages come to the host. Leave out outputs="device".')
        return super().run(inputs, outputs=outputs, stream=stream)

    def _host_outputs(self, route: Route, copied: bool) -> dict[str, Any]:
        assert self._opened is not None
        left = {
            name: copy_out(view) if copied else view
            for name, view in route.outputs.items()
            if view is not None and name not in self._stages.outputs
        }
        return left | self._opened.results()

    def clone(self) -> Runner:
        self.check_open()
        return StagedSession(self.engine, self._stages, cuda_graph=self._cuda_graph, profile=self._profile)
