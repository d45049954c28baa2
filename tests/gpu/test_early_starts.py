"""Kernels that TensorRT-RTX starts too early are held back, however a request gets to the GPU.

Without that the residual blocks of one row were wrong on an H100 and an H200, by 0.2 to 0.3 and more (relative, L2) in
300 of 300 requests. The other networks have the same kernels in other orders, and were not seen to be wrong.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

import trtrun
from benchmarks.models import resnet50
from tests import models, networks
from tests.gpu.conftest import TF32, relative_error
from trtrun import runtime_cache
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda import early_starts
from trtrun.cuda.check import check
from trtrun.cuda.device import Device
from trtrun.cuda.memory import DeviceMemory, fill_async
from trtrun.engine import Engine
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.runtime_cache import RuntimeCache
from trtrun.session import Session

torch = pytest.importorskip("torch")

# batch, channels, width, side, stride of ResNet-50's first and third stage, and other ways to a tensor that is added
NETWORKS = {
    "8 rows": lambda: models.residual(8),
    "1 row": lambda: models.residual(1),
    "1 row of stage 1": lambda: models.residual(1, 64, 64, 56, 1),
    "uint8": lambda: models.residual(1, dtype="uint8"),
    "resized": models.pyramid,
    "split": models.split,
    "the input": models.around,
}


def requests(spec: trtrun.TensorSpec, shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    rng = np.random.default_rng()
    if spec.dtype == np.uint8:
        return [rng.integers(0, 3, shape, np.uint8) for _ in range(count)]
    return [np.maximum(rng.standard_normal(shape), 0).astype(np.float32) for _ in range(count)]


@pytest.fixture(autouse=True)
def nothing_lost_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all tests before made TensorRT lose for sizes counts for this process, and would leave these without any."""
    monkeypatch.setattr(runtime_cache, "_lost", 0)


@pytest.fixture(scope="module", params=NETWORKS)
def block(request: pytest.FixtureRequest) -> tuple[bytes, list[np.ndarray], list[np.ndarray]]:
    """A plan of fixed shape, requests and their answers."""
    model = NETWORKS[request.param]()
    reference = OnnxRuntimeSession(model)
    spec = reference.inputs["x"]
    inputs = requests(spec, spec.shape, 4)
    return build_plan(model), inputs, [reference(x)["y"] for x in inputs]


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_first_and_later_requests(block: tuple, cuda_graph: bool) -> None:
    plan, inputs, wanted = block
    for _ in range(3):
        with Engine(plan) as engine, Session(engine, cuda_graph=cuda_graph) as session:
            for turn in range(12):
                error = relative_error(session(inputs[turn % 4])["y"], wanted[turn % 4])
                assert error <= TF32, (turn, error)


def test_bound_arrays(block: tuple) -> None:
    plan, inputs, wanted = block
    with Engine(plan) as engine, Session(engine) as session:
        x, y = torch.from_numpy(inputs[0]).cuda(), torch.empty(wanted[0].shape, device="cuda")
        with session.bind({"x": x}, {"y": y}) as call:
            for turn in range(12):
                x.copy_(torch.from_numpy(inputs[turn % 4]))
                y.fill_(torch.nan)
                call()
                assert relative_error(y.cpu().numpy(), wanted[turn % 4]) <= TF32


def test_gpu_arrays_and_a_pipeline(block: tuple) -> None:
    plan, inputs, wanted = block
    with Engine(plan) as engine:
        with Session(engine) as session:
            for turn in range(8):
                out = session.run({"x": torch.from_numpy(inputs[turn % 4]).cuda()}, outputs="device")["y"]
                assert relative_error(torch.from_dlpack(out).cpu().numpy(), wanted[turn % 4]) <= TF32
        with Session(engine) as session, trtrun.Pipeline(session, depth=3) as pipeline:
            for turn, out in enumerate(pipeline.map(inputs * 8)):
                assert relative_error(out["y"], wanted[turn % 4]) <= TF32


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_several_in_flight(precision: str) -> None:
    """Half precision goes wrong under load alone: 5 % of requests in bf16 and 0.3 % in fp16 without holding back."""
    plan = build_plan(resnet50(1, "float32"), BuildOptions(**{} if precision == "fp32" else {precision: True}))
    with Engine(plan) as engine, Session(engine) as session:
        name, out = next(iter(engine.inputs)), next(iter(engine.outputs))
        inputs = [{name: x} for x in requests(engine.inputs[name], engine.inputs[name].shape, 3)]
        wanted = [[session.run(x)[out] for _ in range(3)][-1] for x in inputs]
        with trtrun.Pipeline(session, depth=4) as pipeline:
            for turn, found in enumerate(pipeline.map(inputs * 1000)):
                np.testing.assert_array_equal(found[out], wanted[turn % 3])


def edges_of(graph: Any) -> tuple[Counter[early_starts.Edge], Counter[early_starts.Edge]]:
    """The early starts of a captured graph, and its ordinary edges."""
    count = check(driver.cuGraphGetEdges(graph), "count edges")[-1]
    early: Counter[early_starts.Edge] = Counter()
    ordinary: Counter[early_starts.Edge] = Counter()
    for source, target, datum in zip(*check(driver.cuGraphGetEdges(graph, count), "list edges")[:3], strict=True):
        programmatic = datum.type == driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC
        (early if programmatic else ordinary)[int(source), int(target)] += 1
    return early, ordinary


@pytest.mark.parametrize("runtime_cache", [True, False])
def test_only_the_kernel_that_writes_a_tensor_is_waited_for(
    runtime_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime cache tells how far tensors reach; without it all sixteen blocks wait for the kernel just ahead."""
    ordered: list[tuple[int, int]] = []  # ordinary edges in place of early starts, and beside them
    hold_back = early_starts.hold_back

    def watched(graph: Any, *given: Any) -> int:
        early, ordinary = edges_of(graph)
        count = hold_back(graph, *given)
        early_now, ordinary_now = edges_of(graph)
        lost, new = early - early_now, ordinary_now - ordinary
        assert not early_now - early
        assert not ordinary - ordinary_now
        assert not set(new) & set(early_now), "an early start stands beside its own ordinary edge"
        assert set(lost) <= set(new)
        assert set(new.values()) <= {1}
        assert len(new) <= count
        ordered.append((len(lost), len(set(new) - set(lost))))
        return count

    monkeypatch.setattr("trtrun.engine.hold_back", watched)
    with Engine(build_plan(resnet50(1)), runtime_cache=runtime_cache) as engine, Session(engine) as session:
        if not engine.starts_early:
            pytest.skip("no early starts")
        x = np.ones(engine.inputs["images"].shape, np.float16)
        for _ in range(4):
            session(x)
    assert ordered
    for instead, beside in ordered:
        assert (instead <= 6 and beside >= 10) if runtime_cache else (instead >= 16 and not beside), ordered


def test_the_runtime_cache_is_seldom_looked_into(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT-RTX loses the memory of each serialization: one look for each shape, none for known ones, and when
    that has cost as much as it may, no more.
    """
    model = models.residual()
    plan = build_plan(model, BuildOptions(profiles=parse_shapes(["x=1x512x28x28:8x512x28x28:8x512x28x28"])))
    reference = OnnxRuntimeSession(model)
    answered = [
        (x, reference(x)["y"]) for size in range(1, 7) for x in requests(reference.inputs["x"], (size, 512, 28, 28), 1)
    ]
    serialize, save = RuntimeCache._serialize, RuntimeCache.save
    looks = saves = 0
    saving = False

    def counted(cache: RuntimeCache) -> bytes:
        nonlocal looks, saves
        looks, saves = looks + (not saving), saves + saving
        return serialize(cache)

    def noted(cache: RuntimeCache) -> None:
        nonlocal saving
        saving = True
        save(cache)
        saving = False

    monkeypatch.setattr(RuntimeCache, "_serialize", counted)
    monkeypatch.setattr(RuntimeCache, "save", noted)

    def serializations(folder: str) -> tuple[int, int]:
        nonlocal looks, saves
        looks = saves = 0
        monkeypatch.setenv("TRTRUN_CACHE_DIR", str(tmp_path / folder))
        runtime_cache._kept.clear()  # as in a process of its own
        with Engine(plan) as engine, Session(engine) as session:
            if not engine.starts_early:
                pytest.skip("no early starts")
            for turn in range(36):  # each shape first alone, then with a context and a graph of its own
                x, wanted = answered[turn % 6]
                assert relative_error(session(x)["y"], wanted) <= TF32, turn
        return looks, saves

    new, again = serializations("a"), serializations("a")
    assert "lose more host memory" not in caplog.text
    monkeypatch.setattr(runtime_cache, "_MAX_LOST", runtime_cache._lost + 1)
    bounded = serializations("b")
    print("looks and saves, of a new plan, of one that is known, and within bounds:", new, again, bounded)
    assert 1 <= new[0] <= 6, new  # a look for each shape
    assert again[0] == 0, again
    assert bounded[0] == 1, bounded
    assert max(new[1], again[1], bounded[1]) <= 4, (new, again, bounded)
    assert "lose more host memory" in caplog.text


# A kernel that lets the next one start, waits for those ahead, and takes its time; when it started, and ended.
_TIMED = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry timed(.param .u64 times, .param .u64 nanoseconds)
{
    .reg .b64 %at, %now, %end;
    .reg .b32 %left;
    .reg .pred %more;
    ld.param.u64 %at, [times];
    cvta.to.global.u64 %at, %at;
    mov.u64 %now, %globaltimer;
    st.global.u64 [%at], %now;
    griddepcontrol.launch_dependents;
    griddepcontrol.wait;
    ld.param.u64 %end, [nanoseconds];
    mov.u64 %now, %globaltimer;
    add.u64 %end, %end, %now;
    mov.u32 %left, 100000;
AGAIN:
    nanosleep.u32 100;
    mov.u64 %now, %globaltimer;
    setp.lt.u64 %more, %now, %end;
    sub.u32 %left, %left, 1;
    setp.gt.and.u32 %more, %left, 0, %more;
    @%more bra AGAIN;
    st.global.u64 [%at+8], %now;
    ret;
}
"""


def test_an_ordinary_edge_beside_an_early_start_holds() -> None:
    """CUDA takes both into one kernel, and starts it when the one at the ordinary edge is done, the other not yet."""
    device = Device()
    if device.compute_capability < (9, 0):
        pytest.skip("no early starts")
    with device, ExitStack() as undo:
        memory = DeviceMemory(device, 6 * 8)
        undo.callback(memory.close)
        module = check(driver.cuModuleLoadData(_TIMED.encode() + b"\0"), "load")
        undo.callback(driver.cuModuleUnload, module)
        function = check(driver.cuModuleGetFunction(module, b"timed"), "find")
        programmatic = driver.CUgraphEdgeData()
        programmatic.type = driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC
        programmatic.from_port = 1  # when all blocks have let the next kernel start
        for beside in (False, True):
            graph = check(driver.cuGraphCreate(0), "create")
            undo.callback(driver.cuGraphDestroy, graph)
            nodes = []
            for index, nanoseconds in enumerate((200_000, 200_000, 1_000)):
                values = ctypes.c_uint64(memory.address + 16 * index), ctypes.c_uint64(nanoseconds)
                arguments = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
                launch = driver.CUDA_KERNEL_NODE_PARAMS()
                launch.func, launch.kernelParams, launch.blockDimX = function, ctypes.addressof(arguments), 32
                launch.gridDimX = launch.gridDimY = launch.gridDimZ = launch.blockDimY = launch.blockDimZ = 1
                nodes.append(check(driver.cuGraphAddKernelNode(graph, None, 0, launch), "add a kernel"))
            for source, target in ((0, 1), (1, 2)):
                edge = [nodes[source]], [nodes[target]]
                check(driver.cuGraphAddDependencies(graph, *edge, [programmatic], 1), "add an early start")
            if beside:
                check(driver.cuGraphAddDependencies(graph, [nodes[0]], [nodes[2]], None, 1), "add an edge")
            runnable = check(driver.cuGraphInstantiate(graph, 0), "instantiate")
            undo.callback(driver.cuGraphExecDestroy, runnable)
            for _ in range(20):
                check(driver.cuGraphLaunch(runnable, 0), "launch")
                check(driver.cuCtxSynchronize(), "wait")
                times = np.empty((3, 2), np.int64)
                check(driver.cuMemcpyDtoH(times.ctypes.data, memory.address, times.nbytes), "read")
                (_, first), (_, second), (start, _) = times
                assert start < second, times - times[0, 0]
                assert (start >= first) == beside, times - times[0, 0]


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_shapes_that_change(cuda_graph: bool) -> None:
    model = models.residual()
    plan = build_plan(model, BuildOptions(profiles=parse_shapes(["x=1x512x28x28:8x512x28x28:8x512x28x28"])))
    reference = OnnxRuntimeSession(model)
    answered = [
        (x, reference(x)["y"]) for size in (8, 1, 4, 2) for x in requests(reference.inputs["x"], (size, 512, 28, 28), 1)
    ]
    with Engine(plan) as engine, Session(engine, cuda_graph=cuda_graph) as session:
        for turn in range(16):  # each shape first alone, then with a context and a graph of its own
            x, wanted = answered[turn % 4]
            assert relative_error(session(x)["y"], wanted) <= TF32, turn


@pytest.mark.parametrize("stateful", [False, True])
def test_an_input_that_the_first_execution_wrote_over(stateful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels must be held back the first execution counts for nothing, whatever it left in an aliased input."""
    cache = np.random.default_rng().standard_normal((1, 1, 8, 4)).astype(np.float32)
    update = np.float32([[[[1, 2, 3, 4]]]])
    ruined: list[int] = []
    with Engine(networks.kv_cache(8)) as engine, Session(engine, cuda_graph=False) as session:
        assert engine.starts_early
        monkeypatch.setattr(engine, "hold_back", lambda graph, memory: 1)
        used = session.state({"cache": "cache_out"}, initial={"cache": cache}) if stateful else session
        route = used._common
        enqueue = route.execute

        def execute(stream: int) -> None:
            enqueue(stream)
            if not ruined:
                address, nbytes = route.output_parts["cache_out"][0]
                fill_async(address, 0x7B, nbytes, stream)
                ruined.append(address)

        monkeypatch.setattr(route, "execute", execute)
        wanted = cache.copy()
        for at in (3, 5):
            if stateful:
                used.run({"update": update, "at": np.int32([at])})
                found = used.read_state()["cache"]
            else:
                found = used(cache=cache, update=update, at=np.int32([at]))["cache_out"]
                wanted = cache.copy()
            wanted[0, 0, at] = update[0, 0, 0]
            np.testing.assert_array_equal(found, wanted)
        used.close()
    assert ruined
