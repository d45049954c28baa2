"""Engine: a deserialized plan and its specs. Owns the runtime, the plugins' registration and the runtime cache."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from . import flavor as flavors
from .cuda.device import Device
from .cuda.early_starts import Place, hold_back
from .errors import (
    ClosedError,
    ExecutionError,
    OutOfMemoryError,
    PlanError,
    PlanMismatchError,
    PluginError,
    TrtrunError,
    UnsupportedTensorError,
)
from .plan import ModelData, ModelFile, PlanInfo, identify, pieces
from .plan_reader import PlanReader
from .runtime_cache import RuntimeCache
from .tensor_spec import ShapeRange, TensorSpec, TensorSpecs, to_shape

if TYPE_CHECKING:
    from .bound import Bound
    from .filling import Choice
    from .flavor import ICudaEngine, IExecutionContext, Runtime
    from .session import Session

_LOG = logging.getLogger("trtrun")
_T = TypeVar("_T")
_MAX_NOTES = 256  # shapes of which is kept what was found out


class Engine:
    """A deserialized plan on one GPU.

    Args:
        source: the path of a plan, its bytes or its open file. Exporter metadata in front of it (Ultralytics) is
            understood.
        device: ordinal of the GPU.
        plugins: paths of plugin libraries to register first.
        engine_host_code_allowed: let the plan run code on the host: the lean runtime inside a version-compatible plan,
            and plugin libraries that were serialized into it. Only for plans from a source you trust as you trust
            a program.
        weight_streaming_budget: bytes of weights that stay on the GPU, for a plan built with weight streaming; the
            rest is streamed from the host in every run. None keeps all weights on the GPU.
        runtime_cache: keep the kernels that TensorRT-RTX compiles on this GPU in trtrun's cache folder, so that the
            next process starts fast. Flavours that compile nothing at run time ignore it. Without it less is known of
            them, and more must wait for each other: with many requests in flight up to 9 % fewer are done.

    Raises:
        ModelFileError: the path cannot be read.
        PlanError: not a plan, truncated or damaged. PlanMismatchError: another flavour, version or GPU.
        MissingPackageError: the TensorRT that could load it is not installed.
        NoGpuError: no usable GPU. OutOfMemoryError: the weights do not fit.
        PluginError: a plugin library or creator is missing.
        UnsupportedTensorError: an input or output has a dtype or format that trtrun cannot carry.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | bytearray | memoryview | ModelFile,
        *,
        device: int = 0,
        plugins: Sequence[str | os.PathLike[str]] = (),
        engine_host_code_allowed: bool = False,
        weight_streaming_budget: int | None = None,
        runtime_cache: bool = True,
    ) -> None:
        data: ModelData
        if isinstance(source, (bytes, bytearray, memoryview)):
            data, name = memoryview(source), "this plan"
        else:
            data = source if isinstance(source, ModelFile) else ModelFile(source)
            name = data.name
        self.plan: PlanInfo = identify(data, source=name)
        self.flavor: flavors.Flavor = flavors.for_plan(self.plan)
        self.device = Device(device)  # before any call into TensorRT, which crashes without a driver
        self.name = name
        self.auto_close = False  # set by load(): closed with the last session
        self.ways: dict[object, tuple[int, ...] | None] = {}  # per shape key, the batch sizes that ran it fastest
        self.choices: dict[object, Choice] = {}  # per shape key, how large inputs get to the GPU
        self._notes_lock = threading.Lock()
        self.in_order: set[object] = set()  # shapes of inputs and outputs whose kernels need not be held back
        self._users = threading.Condition()  # guards the next three
        self._sessions: weakref.WeakSet[Session | Bound] = weakref.WeakSet()
        self._occupants = 0  # uses outside a session, see occupied()
        self._alone = False
        self._idle_contexts: dict[object, list[IExecutionContext]] = {}  # by what they served
        self._idle_lock = threading.Lock()
        self.flavor.initialize_plugins(plugins)
        with self.device:
            self._runtime: Runtime | None = self._create_runtime(engine_host_code_allowed)
            self._engine: ICudaEngine | None = self._deserialize(self._runtime, data)
            if weight_streaming_budget is not None:
                self._set_weight_streaming_budget(weight_streaming_budget)
            self.inputs, self.outputs = self._read_specs()
            self.aliases = self._read_aliases()
        self._runtime_cache = (
            RuntimeCache.of(pieces(data, self.plan.offset), self.flavor, self.device)
            if runtime_cache and self.flavor.capabilities.has_runtime_cache
            else None
        )
        # Held while TensorRT may compile kernels; replayed graphs do not pass it.
        self.compile_lock = self.flavor.compile_lock(self.device.ordinal)

    def _create_runtime(self, host_code: bool) -> Runtime:
        with self.flavor.logger.capture() as lines:
            runtime: Runtime | None = self.flavor.module.Runtime(self.flavor.logger.handle)
        if runtime is None:
            raise ExecutionError(f"{self.flavor.title} could not create a runtime.", log=lines)
        if host_code:
            runtime.engine_host_code_allowed = True
        return runtime

    def _deserialize(self, runtime: Runtime, data: ModelData) -> ICudaEngine:
        start = self.plan.offset
        engine: ICudaEngine | None
        with self.flavor.logger.capture() as lines:
            if self.flavor.capabilities.has_stream_reader:
                engine = PlanReader(data, start).deserialize(self.flavor.module, runtime)
            else:
                buffer = data.mapped() if isinstance(data, ModelFile) else memoryview(data)
                engine = runtime.deserialize_cuda_engine(buffer[start:])
        if engine is None:
            raise self._diagnose(runtime, data, lines)
        return engine

    def _diagnose(self, runtime: Any, data: ModelData, lines: list[str]) -> TrtrunError:
        """Which error a failed deserialization is, from TensorRT's own words."""
        said = "\n".join(lines).lower()
        ours = f"{self.flavor.title} on {self.device.name} (compute capability {_dotted(self.device)})"
        if "out of memory" in said or "outofmemory" in said:
            return OutOfMemoryError(
                f"{self.name}, a plan of {self.plan.size:,} bytes, needs more device memory than is free "
                f"({self.device.memory()[0]:,} bytes). Close other engines and processes on this GPU, use a larger "
                "GPU, or build it with weight streaming and load it with a weight_streaming_budget below what is free.",
                log=lines,
            )
        if "plugin" in said and ("not find" in said or "creator" in said or "registry" in said):
            return PluginError(
                f"{self.name} uses a plugin that is not registered. Looked for among {self.flavor.plugin_creators()}. "
                "Pass its library: load(..., plugins=['lib….so']), or register the creator of a plugin written in "
                f"Python with {self.flavor.module.__name__}.get_plugin_registry() first.",
                log=lines,
            )
        if "host code" in said or "hostcode" in said or "host-code" in said:
            return PlanError(
                f"{self.name} carries code that runs on the host, which is off unless asked for. If you trust its "
                "source as you trust a program: load(..., engine_host_code_allowed=True).",
                log=lines,
            )
        if "version" in said or "compute capability" in said or "compatib" in said or "platform" in said:
            return PlanMismatchError(
                f"{self.name} is a {self.plan}, which {ours} refuses: plans run only on the version and kind of GPU "
                "they were built for. Build it again from its ONNX file: trtrun build.",
                log=lines,
            )
        if self.flavor.capabilities.has_engine_validity:
            with suppress(Exception):
                header = data[self.plan.offset : self.plan.offset + runtime.engine_header_size]
                validity, diagnostics = runtime.get_engine_validity(header)
                lines = [*lines, f"engine validity {validity.name}, diagnostics {diagnostics}"]
        return PlanError(
            f"{self.name} could not be deserialized by {ours}; the file may be damaged. "
            "Copy it again, or build it again from its ONNX file: trtrun build.",
            log=lines,
        )

    def _read_specs(self) -> tuple[TensorSpecs, TensorSpecs]:
        trt, engine = self.flavor.module, self.handle
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            dtype = self.flavor.to_numpy_dtype(engine.get_tensor_dtype(name), name)
            on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
            shape = to_shape(engine.get_tensor_shape(name))
            profiles: tuple[ShapeRange, ...] = ()
            if is_input and -1 in shape:
                profiles = tuple(
                    ShapeRange(*(to_shape(dims) for dims in engine.get_tensor_profile_shape(name, profile)))
                    for profile in range(engine.num_optimization_profiles)
                )
            spec = TensorSpec(
                name,
                dtype,
                shape,
                profiles,
                "host" if on_host else "device",
                format=self._format(name, dtype),
            )
            (inputs if is_input else outputs).append(spec)
        return TensorSpecs(inputs), TensorSpecs(outputs)

    def _format(self, name: str, dtype: np.dtype[Any]) -> str:
        """TensorRT's description of the tensor's format where it is not row-major linear, else ``""``."""
        engine = self.handle
        # The enum TensorFormat is missing from lean and dispatch; the description is the same everywhere.
        described = ""
        for profile in range(self.num_profiles):
            text = engine.get_tensor_format_desc(name, profile)
            if engine.get_tensor_vectorized_dim(name, profile) != -1 or "linear" not in text.lower():
                described = text
        if dtype.name not in flavors.FOUR_BIT:
            return described
        if described:
            raise UnsupportedTensorError(
                f"{self.name}: tensor {name!r} holds 4-bit values in the format {described!r}, which nobody has told "
                "trtrun how to read. Build the engine with row-major linear inputs and outputs."
            )
        return "two 4-bit values to a byte"

    def _read_aliases(self) -> dict[str, str]:
        """Outputs that TensorRT writes into the memory of an input, with that input."""
        engine: Any = self.handle  # newer than the stubs
        if not self.flavor.capabilities.has_aliases:
            return {}
        aliases = {name: engine.get_aliased_input_tensor(name) for name in self.outputs}
        return {name: source for name, source in aliases.items() if source}

    def _set_weight_streaming_budget(self, budget: int) -> None:
        engine, streamable = self.handle, 0
        if self.flavor.capabilities.has_weight_streaming:
            streamable = engine.streamable_weights_size
        if streamable == 0:
            raise PlanError(
                f"{self.name} was not built with weight streaming, so a budget has no meaning. Build it with "
                "BuildOptions(weight_streaming=True), or load it without weight_streaming_budget."
            )
        with self.flavor.logger.capture() as lines:
            engine.weight_streaming_budget_v2 = min(budget, streamable)
        if engine.weight_streaming_budget_v2 != min(budget, streamable):
            raise PlanError(
                f"{self.flavor.title} refused a weight streaming budget of {budget:,} bytes for {self.name}, whose "
                f"streamable weights take {streamable:,}.",
                log=lines,
            )

    def refit(self, weights: str | os.PathLike[str] | bytes | Mapping[str, Any]) -> None:
        """Replace weights, all of them or none. Requests that run wait; those that follow see the new weights.

        Args:
            weights: an ONNX file or its bytes, whose initializers are matched by name, or arrays by weight name.

        Raises:
            RefitError: the engine was not built with ``BuildOptions(refittable=True)``, or names, sizes or dtypes do
                not fit; it lists the unknown and the missing names. The old weights stay.
            ModelFileError: the path cannot be read.
        """
        from .refit import refit

        with self._without_users() as sessions, ExitStack() as paused:
            self.check_open()
            for session in sessions:
                paused.enter_context(session.paused())
            paused.enter_context(self.compile_lock)
            paused.enter_context(self.device)
            refit(self.flavor, self.handle, self.name, weights)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The exporter's JSON in front of the plan; empty without."""
        return self.plan.metadata

    @property
    def num_profiles(self) -> int:
        return self.handle.num_optimization_profiles

    @property
    def handle(self) -> ICudaEngine:
        """TensorRT's own ``ICudaEngine``. Raises ClosedError after close()."""
        if self._engine is None:
            raise ClosedError(f"the engine {self.name} is closed. Load it again to run it.")
        return self._engine

    @property
    def device_memory_size(self) -> int:
        """Bytes of scratch memory that one execution context needs at most."""
        return self.handle.device_memory_size_v2

    def hold_back(self, graph: Any, memory: Collection[Place]) -> int:
        """Order the kernels of a captured ``CUgraph`` where TensorRT's early starts read too early; how many.

        Under the compile lock. ``memory``: address and bytes of the pieces that tensors lie in.
        """
        if not self.starts_early:
            return 0
        cache = self._runtime_cache
        return hold_back(graph, memory, cache.sizes() if cache is not None else lambda name, parameters: None)

    @property
    def starts_early(self) -> bool:
        """Whether kernels may start before those ahead are done; see :mod:`trtrun.cuda.early_starts`."""
        return self.device.compute_capability >= (9, 0)

    def create_context(self, serves: object = None) -> IExecutionContext:
        """An ``IExecutionContext`` without scratch memory of its own: a new one, or one that was given back.

        By preference one that served the same shapes, or any: a context keeps host memory for each profile that it had.

        A flavour that compiles at run time compiles kernels for each shape before its first execution. Its generic
        kernels would start at once, but they are slower and give way to the compiled ones in the background, so that
        equal requests would get unequal answers and a graph captured early would stay slow.
        """
        engine: Any = self.handle  # the runtime config's members are TensorRT-RTX's, and the stubs know the full API
        trt, capabilities = self.flavor.module, self.flavor.capabilities
        with self._idle_lock:
            if idle := self._idle_contexts:
                served = next((kind for kind in (serves, None) if kind in idle), next(iter(idle)))
                reused = idle[served].pop()
                if not idle[served]:
                    del idle[served]
                return reused
        with self.compile_lock, self.device, self.flavor.logger.capture() as lines:
            user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            if capabilities.has_runtime_config:
                config = engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(user_managed)
                if capabilities.has_kernel_specialization:
                    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
                    config.dynamic_shapes_kernel_specialization_strategy = eager
                if self._runtime_cache is not None:
                    self._runtime_cache.attach(config)
                context: IExecutionContext | None = engine.create_execution_context(config)
            else:
                context = engine.create_execution_context(user_managed)
        if context is None:
            said = "\n".join(lines).lower()
            kind = OutOfMemoryError if "memory" in said else ExecutionError
            raise kind(
                f"{self.flavor.title} could not create an execution context for {self.name}. "
                "Close other sessions and processes on this GPU if memory is short.",
                log=lines,
            )
        return context

    def give_back(
        self, contexts: list[IExecutionContext], served: Sequence[object] = (None,), *, reusable: bool = True
    ) -> None:
        """Take contexts that a session no longer needs, out of this list: they are kept for the next.

        ``served``: for each the only shapes that it was given, None where there were several.

        TensorRT-RTX 1.6.1 returns the half megabyte of host memory that a context takes only with the engine, so
        contexts are made as many as are in use at once and no more. Those that are not ``reusable`` are destroyed.
        """
        with self.compile_lock, self._idle_lock:  # nobody compiles while a context goes
            if reusable and self._engine is not None:
                for context, kind in zip(contexts, served, strict=True):
                    self._idle_contexts.setdefault(kind, []).append(context)
            contexts.clear()

    def note(self, notes: dict[object, _T], key: object, found: _T) -> None:
        """Put into ``ways`` or ``choices`` what was found out for a shape; of many the oldest goes."""
        with self._notes_lock:
            if len(notes) >= _MAX_NOTES:
                del notes[next(iter(notes))]
            notes[key] = found

    def keep_kernels(self, shapes: object) -> None:
        """Say that kernels were compiled for these input shapes: the cache folder will have them."""
        if self._runtime_cache is not None:
            with self.compile_lock:
                self._runtime_cache.note(shapes)

    def enter(self, session: Session | Bound) -> None:
        """Count a session among the users; the caller may hold no lock that the session's requests take."""
        with self._users:
            self._users.wait_for(lambda: not self._alone)
            self.check_open()
            self._sessions.add(session)

    def leave(self, session: Session | Bound) -> None:
        with self._users:
            self._sessions.discard(session)
            last = self.auto_close and not self._sessions
        if last:
            self.close()

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """One use outside a session: the engine stays open and keeps its weights inside the block."""
        with self._users:
            self._users.wait_for(lambda: not self._alone)
            self.check_open()
            self._occupants += 1
        try:
            yield
        finally:
            with self._users:
                self._occupants -= 1
                self._users.notify_all()

    @contextmanager
    def _without_users(self) -> Iterator[list[Session | Bound]]:
        """Nobody begins to use the engine inside the block; who uses it are the sessions that are yielded."""
        with self._users:
            self._users.wait_for(lambda: not self._alone)
            self._alone = True
        try:
            with self._users:
                self._users.wait_for(lambda: not self._occupants)
                sessions = sorted(self._sessions, key=id)
            yield sessions
        finally:
            with self._users:
                self._alone = False
                self._users.notify_all()

    @property
    def closed(self) -> bool:
        return self._engine is None

    def check_open(self) -> None:
        self.handle  # noqa: B018  # raises ClosedError

    def close(self) -> None:
        """Close the sessions over this engine, then the engine and its runtime. Calling it again does nothing."""
        self.auto_close = False
        with self._without_users() as sessions:
            # Before taking the lock: a session that is just running holds its own and may be waiting for this one.
            for session in sessions:
                session.close()
            with self.compile_lock:
                if self._engine is None:
                    return
                with self.device:
                    # Dropped in reverse order of creation: each object must not outlive the one that made it.
                    with self._idle_lock:
                        self._idle_contexts.clear()
                    if self._runtime_cache is not None:
                        self._runtime_cache.save()
                    self._engine = None
                    self._runtime = None

    def __enter__(self) -> Engine:
        self.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine {self.name}: {self.plan}, {self.inputs!r} -> {self.outputs!r}>"


def _dotted(device: Device) -> str:
    return ".".join(map(str, device.compute_capability))
