"""What trtrun is measured against: each a way to get from NumPy to NumPy through the same network.

Every peer has ``infer({name: array}) -> {name: array}`` whose results belong to the caller, and ``close()``.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from typing import Any

import numpy as np
from cuda.bindings import driver

Arrays = dict[str, np.ndarray]


def checked(result: tuple) -> Any:
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(result[0].name)
    return result[1] if len(result) > 1 else None


def version(package: str) -> str:
    """Of an installed package, for the records: what was measured is what was installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


class _Tensor:
    """A page-locked and a device buffer of one tensor."""

    def __init__(self, engine: Any, name: str, dtype: np.dtype) -> None:
        self.shape = tuple(engine.get_tensor_shape(name))
        self.nbytes = int(np.prod(self.shape)) * dtype.itemsize
        self.host_address = int(checked(driver.cuMemAllocHost(self.nbytes)))
        self.device = checked(driver.cuMemAlloc(self.nbytes))
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self.host_address)
        self.host = np.ctypeslib.as_array(memory).view(dtype).reshape(self.shape)

    def close(self) -> None:
        checked(driver.cuMemFreeHost(self.host_address))
        checked(driver.cuMemFree(self.device))


_kernels: dict[int, Any] = {}  # id of an engine -> its runtime cache


class _HandWritten:
    """What the hand-written peers share: an execution context, a stream, and buffers by tensor name."""

    def __init__(self, trt: Any, engine: Any) -> None:
        config = engine.create_runtime_config()
        if id(engine) not in _kernels:  # compiled once per engine, or every context takes seconds
            _kernels[id(engine)] = config.create_runtime_cache()
        config.set_runtime_cache(_kernels[id(engine)])
        self.context = engine.create_execution_context(config)
        self.stream = checked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self.tensors = {name: _Tensor(engine, name, dtypes[name]) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        for name, tensor in self.tensors.items():
            self.context.set_tensor_address(name, int(tensor.device))

    def copy_in(self) -> None:
        for name in self.inputs:
            tensor = self.tensors[name]
            checked(driver.cuMemcpyHtoDAsync(tensor.device, tensor.host_address, tensor.nbytes, self.stream))

    def execute(self) -> None:
        if not self.context.execute_async_v3(int(self.stream)):
            raise RuntimeError("execute_async_v3 failed")

    def copy_out(self) -> None:
        for name in self.outputs:
            tensor = self.tensors[name]
            checked(driver.cuMemcpyDtoHAsync(tensor.host_address, tensor.device, tensor.nbytes, self.stream))

    def synchronize(self) -> None:
        checked(driver.cuStreamSynchronize(self.stream))

    def capture(self, *steps: Any) -> Any:
        """These steps as an instantiated CUDA graph."""
        for step in steps:  # warm-up: kernels are compiled in the first run
            step()
        self.synchronize()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(driver.cuStreamBeginCapture(self.stream, mode))
        for step in steps:
            step()
        return checked(driver.cuGraphInstantiate(checked(driver.cuStreamEndCapture(self.stream)), 0))

    def close(self) -> None:
        self.synchronize()
        del self.context
        for tensor in self.tensors.values():
            tensor.close()
        checked(driver.cuStreamDestroy(self.stream))


class BareLoop(_HandWritten):
    """The floor: fill page-locked memory, launch one graph, wait, copy out; nothing is checked.

    ``state``: inputs that never leave the GPU: they begin at zero and get that output of the run before, by a copy in
    the same graph.
    """

    def __init__(self, trt: Any, engine: Any, state: dict[str, str] | None = None) -> None:
        super().__init__(trt, engine)
        self.state = state or {}
        self.inputs = [name for name in self.inputs if name not in self.state]
        self.outputs = [name for name in self.outputs if name not in self.state.values()]
        self.graph = self.capture(self.copy_in, self.execute, self.feed_back, self.copy_out)
        for name in self.state:  # the run before the capture has changed it
            checked(driver.cuMemsetD8Async(self.tensors[name].device, 0, self.tensors[name].nbytes, self.stream))
        self.synchronize()

    def feed_back(self) -> None:
        for name, output in self.state.items():
            source, target = self.tensors[output], self.tensors[name]
            checked(driver.cuMemcpyDtoDAsync(target.device, source.device, target.nbytes, self.stream))

    def launch(self) -> None:
        driver.cuGraphLaunch(self.graph, self.stream)

    def infer(self, arrays: Arrays) -> Arrays:
        for name in self.inputs:
            np.copyto(self.tensors[name].host, arrays[name])
        driver.cuGraphLaunch(self.graph, self.stream)
        driver.cuStreamSynchronize(self.stream)
        return {name: self.tensors[name].host.copy() for name in self.outputs}


class Chunked(_HandWritten):
    """What no loop with one core can leave out: the copy of the input in chunks, each sent while the next is copied."""

    CHUNK = 800 << 10

    def __init__(self, trt: Any, engine: Any) -> None:
        super().__init__(trt, engine)
        self.graph = self.capture(self.execute, self.copy_out)

    def infer(self, arrays: Arrays) -> Arrays:
        for name in self.inputs:
            tensor = self.tensors[name]
            target, source = tensor.host.reshape(-1).view(np.uint8), arrays[name].reshape(-1).view(np.uint8)
            for start in range(0, tensor.nbytes, self.CHUNK):
                stop = min(start + self.CHUNK, tensor.nbytes)
                np.copyto(target[start:stop], source[start:stop])
                driver.cuMemcpyHtoDAsync(
                    int(tensor.device) + start, tensor.host_address + start, stop - start, self.stream
                )
        driver.cuGraphLaunch(self.graph, self.stream)
        driver.cuStreamSynchronize(self.stream)
        return {name: self.tensors[name].host.copy() for name in self.outputs}


class _Dynamic:
    """A context of an engine with a dynamic input ``x`` and an output ``y`` of its shape, a stream and buffers."""

    def __init__(self, engine: Any, largest: np.ndarray) -> None:
        config = engine.create_runtime_config()
        self.kernels = config.create_runtime_cache()  # a shape that comes back is not compiled again
        config.set_runtime_cache(self.kernels)
        self.context = engine.create_execution_context(config)
        self.stream = checked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        nbytes = largest.nbytes
        self.x, self.y = (int(checked(driver.cuMemAlloc(nbytes))) for _ in range(2))
        self.host_in, self.host_out = (int(checked(driver.cuMemAllocHost(nbytes))) for _ in range(2))
        memory = [(ctypes.c_uint8 * nbytes).from_address(address) for address in (self.host_in, self.host_out)]
        self.filled, self.read = (np.ctypeslib.as_array(m).view(largest.dtype).reshape(largest.shape) for m in memory)

    def execute(self) -> None:
        if not self.context.execute_async_v3(int(self.stream)):
            raise RuntimeError("execute_async_v3 failed")

    def close(self) -> None:
        checked(driver.cuStreamSynchronize(self.stream))
        del self.context, self.kernels
        for memory in (self.x, self.y):
            checked(driver.cuMemFree(memory))
        for address in (self.host_in, self.host_out):
            checked(driver.cuMemFreeHost(address))
        checked(driver.cuStreamDestroy(self.stream))


class BareSwitch(_Dynamic):
    """Requests of several optimization profiles through one context, every call made for every request."""

    def infer(self, x: np.ndarray, profile: int) -> np.ndarray:
        rows = len(x)
        context, stream = self.context, int(self.stream)
        if not context.set_optimization_profile_async(profile, stream):
            raise RuntimeError("set_optimization_profile_async failed")
        context.set_input_shape("x", x.shape)
        context.set_tensor_address("x", self.x)
        context.set_tensor_address("y", self.y)
        np.copyto(self.filled[:rows], x)
        driver.cuMemcpyHtoDAsync(self.x, self.host_in, x.nbytes, self.stream)
        self.execute()
        driver.cuMemcpyDtoHAsync(self.host_out, self.y, x.nbytes, self.stream)
        driver.cuStreamSynchronize(self.stream)
        return self.read[:rows].copy()


class BareAllocator(_Dynamic):
    """A request whose one output comes from an output allocator: copy in, execute, wait for the shape, copy out."""

    def __init__(self, trt: Any, engine: Any, x: np.ndarray) -> None:
        super().__init__(engine, x)
        owner = self

        class Allocator(trt.IOutputAllocator):
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)

            def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
                return owner.y

            def notify_shape(self, name: str, shape: Any) -> None:
                owner.shape = tuple(shape)

        self.allocator = Allocator()
        self.context.set_optimization_profile_async(0, int(self.stream))
        self.context.set_input_shape("x", x.shape)
        self.context.set_tensor_address("x", self.x)
        self.context.set_output_allocator("y", self.allocator)

    def infer(self, x: np.ndarray) -> np.ndarray:
        np.copyto(self.filled, x)
        driver.cuMemcpyHtoDAsync(self.x, self.host_in, x.nbytes, self.stream)
        self.execute()
        driver.cuStreamSynchronize(self.stream)
        driver.cuMemcpyDtoHAsync(self.host_out, self.y, x.nbytes, self.stream)
        driver.cuStreamSynchronize(self.stream)
        return self.read.copy()

    def close(self) -> None:
        super().close()  # the context first: it refers to the allocator
        del self.allocator


class DeviceResident(_HandWritten):
    """The engine alone as a graph, its data on the GPU: the peak that no transfer limits.

    Its inputs are random like everybody's: zeros switch fewer transistors, and the GPU would clock higher.
    """

    def __init__(self, trt: Any, engine: Any) -> None:
        super().__init__(trt, engine)
        rng = np.random.default_rng(0)
        for name in self.inputs:
            host = self.tensors[name].host
            host[...] = rng.standard_normal(host.shape)
        self.copy_in()
        self.graph = self.capture(self.execute)

    def launch(self) -> None:
        driver.cuGraphLaunch(self.graph, self.stream)

    def event_times(self, count: int) -> list[float]:
        """Milliseconds between events around each of ``count`` launches.

        All are enqueued before the first is waited for, so that no event waits for the host to launch what it times.
        """
        events = [checked(driver.cuEventCreate(0)) for _ in range(2 * count)]
        for start, end in zip(events[::2], events[1::2], strict=True):
            checked(driver.cuEventRecord(start, self.stream))
            self.launch()
            checked(driver.cuEventRecord(end, self.stream))
        self.synchronize()
        times = [
            checked(driver.cuEventElapsedTime(start, end)) for start, end in zip(events[::2], events[1::2], strict=True)
        ]
        for event in events:
            checked(driver.cuEventDestroy(event))
        return times


class Floor(DeviceResident):
    """What no single thread can beat: one copy of the input on the host, then the engine alone. No transfer at all."""

    def infer(self, arrays: Arrays) -> Arrays:
        for name in self.inputs:
            np.copyto(self.tensors[name].host, arrays[name])
        self.launch()
        self.synchronize()
        return {}


class Recipe(_HandWritten):
    """The classic recipe as tutorials write it, on the v3 calls: addresses set and every step enqueued per request.

    The tutorials copy the caller's array to the device directly, or through page-locked memory filled first. The
    first is what most pasted code does and is the faster of the two for large batches, so it is the one measured.
    """

    def infer(self, arrays: Arrays) -> Arrays:
        for name in self.inputs:
            array = np.ascontiguousarray(arrays[name])
            tensor = self.tensors[name]
            checked(driver.cuMemcpyHtoDAsync(tensor.device, array.ctypes.data, tensor.nbytes, self.stream))
        for name, tensor in self.tensors.items():
            self.context.set_tensor_address(name, int(tensor.device))
        self.execute()
        self.copy_out()
        self.synchronize()
        return {name: self.tensors[name].host.copy() for name in self.outputs}


class Polygraphy:
    """Polygraphy's ``TrtRunner``; it imports ``tensorrt``, which TensorRT-RTX is given the name of here."""

    def __init__(self, trt: Any, engine: Any) -> None:
        sys.modules.setdefault("tensorrt", trt)
        from polygraphy.backend.trt import TrtRunner

        self.runner = TrtRunner(engine)
        self.runner.activate()

    def infer(self, arrays: Arrays) -> Arrays:
        return self.runner.infer(arrays, copy_outputs_to_host=True)

    def close(self) -> None:
        self.runner.deactivate()


class OnnxRuntimePlugin:
    """ONNX Runtime with NVIDIA's TensorRT-RTX execution provider, with or without its own CUDA graph."""

    registered = False

    def __init__(self, model: bytes, *, cuda_graph: bool) -> None:
        import onnxruntime
        import onnxruntime_ep_nv_tensorrt_rtx as plugin

        if not OnnxRuntimePlugin.registered:
            onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
            OnnxRuntimePlugin.registered = True
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == plugin.get_ep_name()]
        options.add_provider_for_devices(devices, {"enable_cuda_graph": "1" if cuda_graph else "0"})
        self.session = onnxruntime.InferenceSession(model, options)
        self.names = [value.name for value in self.session.get_outputs()]

    def infer(self, arrays: Arrays) -> Arrays:
        return dict(zip(self.names, self.session.run(None, arrays), strict=True))

    def close(self) -> None:
        del self.session


class TorchGraph:
    """torchvision's ResNet-50 in fp16, channels last, as a CUDA graph; random weights, so only its time counts."""

    def __init__(self, batch: int) -> None:
        import torch
        import torchvision

        model = torchvision.models.resnet50(weights=None).cuda().half().eval().to(memory_format=torch.channels_last)
        self.host_in = torch.empty(batch, 3, 224, 224, dtype=torch.float16, pin_memory=True)
        self.device_in = torch.zeros_like(self.host_in, device="cuda").to(memory_format=torch.channels_last)
        self.torch = torch
        with torch.no_grad():
            for _ in range(3):
                model(self.device_in)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = model(self.device_in)

    def infer(self, arrays: Arrays) -> Arrays:
        self.host_in.numpy()[:] = arrays["images"]
        self.device_in.copy_(self.host_in, non_blocking=True)
        self.graph.replay()
        return {"logits": self.out.cpu().numpy()}

    def close(self) -> None:
        del self.graph
