"""GPUs: whether there is one, and the chosen one's primary context."""

from __future__ import annotations

import functools
import os
from types import TracebackType
from typing import Any

from cuda.bindings import driver, runtime

from ..errors import DeviceError, NoGpuError
from .check import check, translated
from .numa import cpus_of

_used_before_fork = False
_opened = False


def _forked() -> None:
    global _used_before_fork
    _used_before_fork = _opened


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


def _check_fork() -> None:
    """CUDA does not survive fork(): its threads are gone and its calls hang or fail in ways that name no cause."""
    if _used_before_fork:
        raise DeviceError(
            "this process was forked from one that had used the GPU, and CUDA does not work in such a child. Start "
            'workers with multiprocessing.get_context("spawn") (torch: multiprocessing_context="spawn"), or fork '
            "before the first model is loaded."
        )


@functools.cache
def _probe() -> tuple[int, str]:
    """How many GPUs CUDA can use here, and why there are none when there are none. Never raises.

    TensorRT itself must not be asked: without a usable driver its runtimes log an error and then crash.
    """
    global _opened
    error, count = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaSuccess and count > 0:
        _opened = True  # asking initialized the driver, which is what a fork does not survive
        return count, ""
    if error == runtime.cudaError_t.cudaErrorInsufficientDriver:
        try:
            version = driver.cuDriverGetVersion()[1]
        except Exception:  # the loader's own error type, when libcuda itself is missing
            return 0, "no NVIDIA driver is installed (libcuda was not found)"
        needed = runtime.getLocalRuntimeVersion()[1]
        return 0, f"the NVIDIA driver supports CUDA {_version(version)}, and CUDA {_version(needed)} is needed"
    if error in (runtime.cudaError_t.cudaErrorNoDevice, runtime.cudaError_t.cudaSuccess):
        return 0, "the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide it)"
    return 0, f"CUDA could not be initialized ({error.name})"


def gpu_count() -> int:
    """The number of GPUs that CUDA can use here; 0 without a driver. Raises only in a forked child, DeviceError."""
    _check_fork()
    return _probe()[0]


def why_no_gpu() -> str:
    """Why :func:`gpu_count` is 0, as half a sentence; empty when there is a GPU."""
    return _probe()[1]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class Device:
    """One GPU and its primary context, the one that torch, CuPy and JAX use too.

    ``with device:`` makes the primary context current in the calling thread and restores the thread's own context
    afterwards, so the block works in any thread and leaves other libraries' choice of device alone.

    Raises:
        NoGpuError: there is no usable GPU, or none with this ordinal.
    """

    def __init__(self, ordinal: int = 0) -> None:
        global _opened
        _check_fork()
        count = gpu_count()
        if count == 0:
            raise NoGpuError(
                f"running an engine needs an NVIDIA GPU, and {why_no_gpu()}. Install or update the driver, "
                "or load the ONNX file instead: without a GPU trtrun runs it through ONNX Runtime on the CPU."
            )
        if not 0 <= ordinal < count:
            raise NoGpuError(f"there is no GPU {ordinal}: CUDA sees {count} (0 to {count - 1}).")
        self.ordinal = ordinal
        check(driver.cuInit(0), "be initialized")
        self._handle = check(driver.cuDeviceGet(ordinal), f"open GPU {ordinal}")
        # Retained for the life of the process, as the CUDA runtime itself does: releasing it would tear down the
        # context under other libraries.
        self._context = check(driver.cuDevicePrimaryCtxRetain(self._handle), f"open GPU {ordinal}'s context")
        self._context_id = int(self._context)
        _opened = True

    @functools.cached_property
    def name(self) -> str:
        name: bytes = check(driver.cuDeviceGetName(256, self._handle), "name the GPU")
        return name.split(b"\0", 1)[0].decode()

    @functools.cached_property
    def uuid(self) -> str:
        """Which GPU of all this is, in hexadecimal digits."""
        return bytes(check(driver.cuDeviceGetUuid(self._handle), "identify the GPU").bytes).hex()

    @functools.cached_property
    def compute_capability(self) -> tuple[int, int]:
        attribute = driver.CUdevice_attribute
        return (
            self.attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self.attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )

    @functools.cached_property
    def driver_version(self) -> str:
        """The CUDA version the driver supports, like ``"13.0"``."""
        return _version(check(driver.cuDriverGetVersion(), "tell its version"))

    def attribute(self, attribute: Any) -> int:
        value: int = check(driver.cuDeviceGetAttribute(attribute, self._handle), "read a device attribute")
        return value

    @functools.cached_property
    def near_cpus(self) -> frozenset[int]:
        """The processors of the NUMA node that the GPU is wired to; none where the machine has one node alone."""
        return cpus_of(self.attribute(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID))

    def memory(self) -> tuple[int, int]:
        """Free and total device memory in bytes."""
        with self:
            free, total = check(driver.cuMemGetInfo(), "read the memory in use")
        return free, total

    def synchronize(self) -> None:
        with self:
            check(driver.cuCtxSynchronize(), "finish the work on the GPU")

    @functools.cached_property
    def core(self) -> Any:
        """The same GPU as a ``cuda.core.Device``; its context must be current when this is first used."""
        from cuda.core import Device as CoreDevice

        with translated(f"open GPU {self.ordinal}"):
            core = CoreDevice(self.ordinal)
            core.set_current()
        return core

    def enter(self) -> bool:
        """Make the primary context current in this thread; True when leave() must restore another one."""
        if _used_before_fork:
            _check_fork()
        if int(driver.cuCtxGetCurrent()[1]) == self._context_id:
            return False
        check(driver.cuCtxPushCurrent(self._context), f"make GPU {self.ordinal} current")
        return True

    def leave(self, entered: bool) -> None:
        if entered:
            check(driver.cuCtxPopCurrent(), "restore the thread's context")

    def __enter__(self) -> Device:
        if _used_before_fork:
            _check_fork()
        # Pushed even when current already: the stack then needs no bookkeeping and nests.
        check(driver.cuCtxPushCurrent(self._context), f"make GPU {self.ordinal} current")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        check(driver.cuCtxPopCurrent(), "restore the thread's context")

    def __repr__(self) -> str:
        return f"<Device {self.ordinal}: {self.name}>"
