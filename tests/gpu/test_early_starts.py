"""Kernels that TensorRT-RTX starts too early are held back, however a request gets to the GPU.

Without that the residual blocks of one row were wrong on an H100 and an H200, by 0.2 to 0.3 and more (relative, L2) in
300 of 300 requests. The other networks have the same kernels in other orders, and were not seen to be wrong.
"""

from __future__ import annotations

import numpy as np
import pytest

import trtrun
from benchmarks.models import resnet50
from tests import models, networks
from tests.gpu.conftest import TF32, relative_error
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda.memory import fill_async
from trtrun.engine import Engine
from trtrun.onnx_runtime import OnnxRuntimeSession
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
