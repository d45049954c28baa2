"""The benchmark networks are what they say: shapes, sizes, finite in fp16, accepted by the real builder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from trtrun.building.builder import build_plan

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def networks() -> Iterator[ModuleType]:
    """benchmarks/models.py, which is no package; tests/models.py has the same name."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("benchmark_models", FOLDER / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def parameters(model: bytes) -> int:
    return sum(int(np.prod(weight.dims)) for weight in onnx.load_from_string(model).graph.initializer)


def run(model: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


# torchvision counts 25,557,032 and 2,542,856 parameters. Folding turns each batch normalization's scale and shift (two
# per channel) into one bias: 26,560 channels in ResNet-50, 6,056 in MobileNetV3-Small.
@pytest.mark.parametrize(
    ("name", "count"), [("resnet50", 25_557_032 - 26_560), ("mobilenet_v3_small", 2_542_856 - 6_056)]
)
def test_networks_are_those_of_torchvision_and_finite_in_fp16(networks: ModuleType, name: str, count: int) -> None:
    make: Callable[..., bytes] = getattr(networks, name)
    assert parameters(make(1)) == count
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    exact, half = run(make(None, "float32"), images), run(make(2), images.astype(np.float16)).astype(np.float64)
    assert exact.shape == (2, 1000)
    assert np.isfinite(half).all()
    # fp16 keeps 11 bits (2⁻¹¹ = 5e-4); rounding between layers adds up to a small multiple of that.
    assert np.linalg.norm(half - exact) < 5e-3 * np.linalg.norm(exact)
    # Different images must get different answers, or the comparison above would prove nothing.
    assert np.linalg.norm(exact[0] - exact[1]) > 1e-3 * np.linalg.norm(exact[0])


def test_the_builder_takes_them(networks: ModuleType) -> None:
    for model in (networks.tiny(), networks.mobilenet_v3_small(None)):
        assert build_plan(model)[:4] == b"vtrt"


def test_tiny_is_12_kilobytes_in_and_40_bytes_out(networks: ModuleType) -> None:
    images = np.zeros((1, 3, 32, 32), np.float32)
    assert images.nbytes == 12_288
    assert run(networks.tiny(), images).nbytes == 40
