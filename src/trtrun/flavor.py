"""The one place that imports TensorRT.

Four modules speak the same API: ``tensorrt`` (full), ``tensorrt_rtx``, ``tensorrt_lean`` and ``tensorrt_dispatch``
(both load only version-compatible plans of the full builder). What each can do is decided once here, by looking at
the module, and kept as :class:`Capabilities`; nothing else in trtrun asks for a version or an attribute.
Several flavours may be loaded in one process.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import BuildError, MissingPackageError, PlanMismatchError, PluginError, UnsupportedTensorError
from .plan import PlanInfo

if TYPE_CHECKING:  # the stubs of the full API, which the objects of every flavour are checked against
    from tensorrt import ICudaEngine, IExecutionContext, Runtime

    __all__ = ["ICudaEngine", "IExecutionContext", "Runtime"]

FlavorName = Literal["tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch"]
Severity = Literal["VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"]

_LOG = logging.getLogger("trtrun.tensorrt")
_LEVELS: dict[str, int] = {
    "VERBOSE": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "INTERNAL_ERROR": logging.CRITICAL,
}
# Which installed module can load a plan of a family, best first: the full runtime knows every plan of its version.
_LOADERS: dict[str, tuple[FlavorName, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_lean", "tensorrt_dispatch"),
    "tensorrt_rtx": ("tensorrt_rtx",),
}
# The newest attributes that trtrun cannot do without.
_REQUIRED = (
    "ICudaEngine.device_memory_size_v2",
    "IExecutionContext.set_device_memory",
    "IExecutionContext.update_device_memory_size_for_shapes",
)
_BUILDERS: tuple[FlavorName, ...] = ("tensorrt_rtx", "tensorrt")
_TITLES: dict[FlavorName, str] = {
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
    "tensorrt_lean": "TensorRT lean",
    "tensorrt_dispatch": "TensorRT dispatch",
}
_INSTALL: dict[str, str] = {
    "tensorrt": "pip install 'trtrun[tensorrt]'",
    "tensorrt_rtx": "pip install 'trtrun[rtx]'",
    "tensorrt_lean": "pip install 'trtrun[lean]'",
    "tensorrt_dispatch": "pip install 'trtrun[dispatch]'",
}


@dataclass(frozen=True)
class Capabilities:
    """What one flavour in one version can do. Decided once, when its module is loaded."""

    name: FlavorName
    version: str
    can_build: bool  # Builder, OnnxParser
    can_build_without_gpu: bool  # portable engines
    has_plugin_library: bool  # init_libnvinfer_plugins
    has_plugin_registry: bool  # get_plugin_registry().load_library
    has_runtime_config: bool  # ICudaEngine.create_runtime_config
    has_runtime_cache: bool  # IRuntimeConfig.create_runtime_cache: compiled kernels kept between processes
    has_kernel_specialization: bool  # IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy
    has_stream_capturable: bool  # IExecutionContext.is_stream_capturable
    has_engine_validity: bool  # Runtime.get_engine_validity
    has_stream_reader: bool  # IStreamReaderV2, answered in parts
    has_strongly_typed_flag: bool  # networks must ask for STRONGLY_TYPED; from 11 on every network is
    has_progress_monitor: bool  # IProgressMonitor
    has_aliases: bool  # ICudaEngine.get_aliased_input_tensor
    has_weight_streaming: bool  # ICudaEngine.weight_streaming_budget_v2
    has_refitter: bool  # Refitter
    has_onnx_refitter: bool  # OnnxParserRefitter
    has_engine_stat: bool  # ICudaEngine.get_engine_stat
    has_inspector: bool  # EngineInspector
    has_debug_tensors: bool  # IDebugListener
    has_layer_times: bool  # IProfiler


@dataclass(frozen=True)
class Flavor:
    """A loaded TensorRT module, what it can do, and its one logger."""

    module: Any
    capabilities: Capabilities
    logger: Logger

    @property
    def title(self) -> str:
        return f"{_TITLES[self.capabilities.name]} {self.capabilities.version}"

    def compile_lock(self, ordinal: int) -> threading.RLock:
        """What is held while kernels may be compiled on this GPU.

        A flavour that compiles at run time has one per GPU: six threads that compiled into one runtime cache crashed
        TensorRT-RTX 1.6.1 within seconds, and NVIDIA promises thread safety across GPUs. Any other compiles nothing, so
        each engine has its own.
        """
        if not self.capabilities.has_kernel_specialization:
            return threading.RLock()
        with _COMPILE_LOCKS_LOCK:
            return _COMPILE_LOCKS.setdefault((self.capabilities.name, ordinal), threading.RLock())

    def initialize_plugins(self, libraries: Sequence[str | os.PathLike[str]] = ()) -> None:
        """Register TensorRT's own plugins where the flavour has them, then the given plugin libraries.

        Registering a library again does nothing. Raises PluginError when one cannot be loaded.
        """
        if self.capabilities.has_plugin_library:
            self.module.init_libnvinfer_plugins(self.logger.handle, "")
        for library in libraries:
            self._load_plugin_library(os.path.abspath(os.fspath(library)))

    def plugin_creators(self) -> str:
        """The names of the registered plugin creators, as text."""
        if not self.capabilities.has_plugin_registry:
            return "what the loaded libraries registered"
        creators = self.module.get_plugin_registry().all_creators
        return ", ".join(sorted({creator.name for creator in creators})) or "no creators: none is registered"

    def _load_plugin_library(self, path: str) -> None:
        with _PLUGIN_LOCK:
            if (self.capabilities.name, path) in _LOADED_PLUGINS:
                return
            if not os.path.isfile(path):
                raise PluginError(f"the plugin library {path!r} does not exist. Pass the path of its .so or .dll file.")
            with self.logger.capture() as lines:
                try:
                    if self.capabilities.has_plugin_registry:
                        loaded = self.module.get_plugin_registry().load_library(path)
                        if loaded is None:
                            # Older plugin libraries register themselves in static constructors instead.
                            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                    else:
                        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                except OSError as error:
                    raise PluginError(
                        f"the plugin library {path!r} cannot be loaded: {error}. "
                        "It must be built for this machine and this version of TensorRT.",
                        log=lines,
                    ) from error
            _LOADED_PLUGINS.add((self.capabilities.name, path))

    def to_numpy_dtype(self, dtype: Any, tensor: str) -> np.dtype[Any]:
        """The NumPy (or ml_dtypes) dtype of a TensorRT ``DataType``.

        Raises UnsupportedTensorError, naming the tensor, for a type that neither knows.
        """
        name = dtype.name
        if name in _NUMPY_DTYPES:
            return np.dtype(_NUMPY_DTYPES[name])
        if name in _ML_DTYPES:
            import ml_dtypes

            extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
            return extended
        raise UnsupportedTensorError(
            f"tensor {tensor!r} has dtype {name}, which this version of trtrun does not know. "
            "Cast it to another type inside the network, or update trtrun."
        )


_NUMPY_DTYPES: dict[str, type] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
# NumPy has none of these. The 4-bit types take a byte each in NumPy and half of one in TensorRT.
_ML_DTYPES: dict[str, str] = {
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "E8M0": "float8_e8m0fnu",
    "INT4": "int4",
    "FP4": "float4_e2m1fn",
}
FOUR_BIT = ("int4", "float4_e2m1fn")
_PLUGIN_LOCK = threading.Lock()
_COMPILE_LOCKS: dict[tuple[str, int], threading.RLock] = {}
_COMPILE_LOCKS_LOCK = threading.Lock()
_LOADED_PLUGINS: set[tuple[str, str]] = set()


@dataclass
class _Capture:
    lines: list[str] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)


class Logger:
    """Sends TensorRT's messages to Python's ``logging`` and keeps those that belong to a failure.

    TensorRT holds on to the first logger it is given, so each flavour has exactly one. Messages go to the logger
    ``trtrun.tensorrt``: VERBOSE as DEBUG, INFO as INFO, WARNING as WARNING, ERROR as ERROR, INTERNAL_ERROR as
    CRITICAL. ``min_severity`` drops what is less severe before it costs anything.

    Attributes:
        handle: the ``ILogger`` object to give to TensorRT.
        min_severity: least severe messages passed on; WARNING unless set.
    """

    def __init__(self, module: Any, min_severity: Severity = "WARNING") -> None:
        self.min_severity: Severity = min_severity
        self._captures: list[_Capture] = []
        self._lock = threading.Lock()
        outer = self

        class Bridge(module.ILogger):  # type: ignore[misc]  # the base is known only at run time
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                # An exception here would cross C++ frames that cannot carry it, so nothing may escape.
                try:
                    outer._receive(severity.name, message)
                except Exception:
                    sys.stderr.write(f"TensorRT: {message}\n")

        self.handle: Any = Bridge()

    def _receive(self, severity: str, message: str) -> None:
        level = _LEVELS[severity]
        if level >= logging.WARNING and self._captures:
            thread = threading.get_ident()
            with self._lock:
                # TensorRT also logs from threads of its own; a line from a thread that captures belongs to that one.
                own = [c for c in self._captures if c.thread == thread]
                for capture in own or self._captures:
                    capture.lines.append(f"[{severity}] {message}")
        if level >= _LEVELS[self.min_severity]:
            _LOG.log(level, "%s", message)

    @contextmanager
    def capture(self) -> Iterator[list[str]]:
        """Collect the warnings and errors that TensorRT logs inside the block."""
        capture = _Capture()
        with self._lock:
            self._captures.append(capture)
        try:
            yield capture.lines
        finally:
            with self._lock:
                self._captures.remove(capture)


def installed() -> tuple[FlavorName, ...]:
    """The flavours that can be imported here, without importing them."""
    return tuple(name for name in _TITLES if _is_installed(name))


def _is_installed(name: str) -> bool:
    # tensorrt-stubs leaves a folder "tensorrt" with only .pyi files: a spec without an origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


_LOAD_LOCK = threading.Lock()


def load(name: FlavorName) -> Flavor:
    """Import one flavour. Raises MissingPackageError, naming the extra, when it is not installed."""
    with _LOAD_LOCK:  # two loggers for one module would be one too many
        return _load(name)


@functools.cache
def _load(name: FlavorName) -> Flavor:
    if not _is_installed(name):
        raise MissingPackageError(
            f"{_TITLES[name]} (module {name}) is not installed. Run: {_INSTALL[name]}"
            + (" (NVIDIA's package downloads its libraries from NVIDIA's own index.)" if name == "tensorrt" else "")
        )
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingPackageError(
            f"{_TITLES[name]} (module {name}) is installed but cannot be imported: {error}. Run: {_INSTALL[name]}"
        ) from error
    for path in _REQUIRED:
        if not _has(module, path):
            raise MissingPackageError(
                f"{_TITLES[name]} {module.__version__} is too old: it has no {path}, which came with 10.1. "
                f"Update it: {_INSTALL[name]}"
            )
    return Flavor(module, _inspect(name, module), Logger(module))


def _has(module: Any, path: str) -> bool:
    owner = module
    for part in path.split("."):
        owner = getattr(owner, part, None)
        if owner is None:
            return False
    return True


def _inspect(name: FlavorName, module: Any) -> Capabilities:
    has = functools.partial(_has, module)

    return Capabilities(
        name=name,
        version=module.__version__,
        can_build=has("Builder") and has("OnnxParser"),
        can_build_without_gpu=has("Builder") and has("IBuilderConfig.set_compute_capability"),
        has_plugin_library=has("init_libnvinfer_plugins"),
        has_plugin_registry=has("get_plugin_registry") and has("IPluginRegistry.load_library"),
        has_runtime_config=has("ICudaEngine.create_runtime_config"),
        has_runtime_cache=has("IRuntimeConfig.create_runtime_cache"),
        has_kernel_specialization=has("IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy"),
        has_stream_capturable=has("IExecutionContext.is_stream_capturable"),
        has_engine_validity=has("Runtime.get_engine_validity"),
        # The bindings of 10.7 and 10.8 take the first part for all (NVIDIA/TensorRT#4327).
        has_stream_reader=has("IStreamReaderV2") and not module.__version__.startswith(("10.7.", "10.8.")),
        has_strongly_typed_flag=has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
        has_progress_monitor=has("IProgressMonitor"),
        has_aliases=has("ICudaEngine.get_aliased_input_tensor"),
        has_weight_streaming=has("ICudaEngine.weight_streaming_budget_v2"),
        has_refitter=has("Refitter"),
        has_onnx_refitter=has("OnnxParserRefitter"),
        has_engine_stat=has("ICudaEngine.get_engine_stat") and has("EngineStat"),
        has_inspector=has("EngineInspector"),
        has_debug_tensors=has("IDebugListener"),
        has_layer_times=has("IProfiler"),
    )


def for_plan(plan: PlanInfo) -> Flavor:
    """The installed flavour that can load this plan.

    Raises:
        MissingPackageError: none of the modules that could is installed.
        PlanMismatchError: one is, in a version that cannot load this plan; says both versions.
    """
    candidates = [name for name in _LOADERS[plan.family] if _is_installed(name)]
    if not candidates:
        wanted = _LOADERS[plan.family][0]
        raise MissingPackageError(
            f"this is a {plan}, and {' or '.join(_LOADERS[plan.family])} is needed to load it; none is installed. "
            f"Run: {_INSTALL[wanted]}" + (_pin(wanted, plan) if plan.version else "")
        )
    mismatches = []
    for name in candidates:
        flavor = load(name)
        if _versions_fit(plan, flavor.capabilities):
            return flavor
        mismatches.append(flavor.title)
    raise PlanMismatchError(
        f"this is a {plan}, and {', '.join(mismatches)} is installed: a plan runs only on the version that built it. "
        f"Build it again from its ONNX file (trtrun build), or install that version"
        f"{_pin(candidates[0], plan)}."
    )


def _versions_fit(plan: PlanInfo, capabilities: Capabilities) -> bool:
    # TensorRT-RTX ties plans to the exact release. Full plans may be version-compatible (the bytes do not say), so
    # for that family the runtime's own verdict counts.
    if plan.version is None or plan.family == "tensorrt":
        return True
    return plan.version_text == capabilities.version


def _pin(name: FlavorName, plan: PlanInfo) -> str:
    return f" (pip install '{name.replace('_', '-')}-cu13=={plan.version_text}')"


def for_building(name: FlavorName | None = None) -> Flavor:
    """The installed flavour with a builder: the named one, else TensorRT-RTX, else the full one."""
    if name is not None and name not in _BUILDERS:
        raise BuildError(f"{name!r} has no builder. Build with {' or '.join(_BUILDERS)}.")
    for candidate in (name,) if name else _BUILDERS:
        if _is_installed(candidate):
            return load(candidate)
    raise MissingPackageError(
        f"building an engine needs {' or '.join((name,) if name else _BUILDERS)}, and it is not installed. "
        f"Run: {_INSTALL[name or 'tensorrt_rtx']}"
    )
