"""Errors that only a GPU can provoke."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtrun
from tests import models
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda.device import Device
from trtrun.cuda.memory import DeviceMemory
from trtrun.engine import Engine
from trtrun.session import Session

Plan = Callable[[str], bytes]


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.999])
def test_truncated_plan(plan: Plan, keep: float) -> None:
    data = plan("convolution")
    with pytest.raises(trtrun.PlanError, match="truncated"):
        Engine(data[: int(len(data) * keep)])


def test_damaged_plan_is_refused_or_runs(plan: Plan) -> None:
    data = bytearray(plan("convolution"))
    data[64:4096] = bytes(4096 - 64)
    with pytest.raises(trtrun.PlanError, match="deserialized") as caught:
        Engine(bytes(data))
    assert caught.value.log


def test_plan_of_another_version(plan: Plan) -> None:
    data = bytearray(plan("affine"))
    data[24:28] = bytes([1, 2, 0, 54])
    with pytest.raises(trtrun.PlanMismatchError, match=r"1\.2\.0\.54.*1\.6\.1\.120"):
        Engine(bytes(data))


def test_plan_for_another_gpu() -> None:
    data = build_plan(models.affine(batch=3), BuildOptions(compute_capabilities=("sm_120",)))
    try:
        trtrun.load(data).close()
    except trtrun.TrtrunError as error:
        refused = error
    else:
        pytest.skip("this TensorRT accepts an engine for compute capability 12.0 on this GPU")
    assert refused.log


def test_no_such_gpu(plan: Plan) -> None:
    with pytest.raises(trtrun.NoGpuError, match="no GPU 99"):
        Engine(plan("affine"), device=99)


def test_out_of_device_memory() -> None:
    device = Device()
    with pytest.raises(trtrun.OutOfMemoryError, match="Free memory"):
        DeviceMemory(device, 1 << 50)
    with pytest.raises(MemoryError):
        DeviceMemory(device, 1 << 50)


def test_what_would_fit_is_said() -> None:
    """Requests for which the GPU has no room name their needs and a batch that fits; smaller ones go on."""
    shapes = parse_shapes(["x=1x3x512x512:8x3x512x512:64x3x512x512"])
    plan = build_plan(models.convolution(), BuildOptions(profiles=shapes))
    device = Device()
    x = np.random.default_rng().standard_normal((64, 3, 512, 512)).astype(np.float32)
    with trtrun.load(plan) as session:
        expected = session(x[:2])["y"]
        hoard = DeviceMemory(device, device.memory()[0] - (250 << 20))
        try:
            with pytest.raises(trtrun.OutOfMemoryError, match=r"needs [\d,]+ bytes .* x=64x3x512x512") as caught:
                session(x)
            found = re.search(r"A batch of about (\d+) would fit", str(caught.value))
            assert found is not None
            assert 2 < int(found[1]) < 64
            np.testing.assert_array_equal(session(x[:2])["y"], expected)
        finally:
            hoard.close()
        assert session(x)["y"].shape == (64, 8, 512, 512)


def test_a_failed_session_leaves_nothing_behind(plan: Plan) -> None:
    with Engine(plan("affine")) as engine:
        engine.create_context = None  # type: ignore[method-assign,assignment]
        with pytest.raises(TypeError):
            Session(engine)
        assert not engine._sessions


def test_missing_plugin_library(plan: Plan) -> None:
    with pytest.raises(trtrun.PluginError, match="does not exist"):
        Engine(plan("affine"), plugins=["/no/such/lib.so"])


def test_a_file_that_is_no_plugin_library(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "libplugin.so"
    path.write_text("this is no library")
    for _ in range(2):  # a failure is not remembered as loaded
        with pytest.raises(trtrun.PluginError, match=r"libplugin\.so.*cannot be loaded"):
            Engine(plan("affine"), plugins=[path])
    Engine(plan("affine")).close()


# TensorRT-RTX 1.6 has no plugin layers in its network API, its parser ends the process at the one operator that is a
# plugin, and it makes no plans that carry code of the host. So what TensorRT says then is taken from its library.
@pytest.mark.parametrize(
    ("said", "kind", "match"),
    [
        ("Cannot find plugin: MyPlugin, version: 1, namespace: ", "PluginError", "plugins=.*get_plugin_registry"),
        ("getPluginCreator could not find plugin MyPlugin version 1", "PluginError", "ROIAlign_TRT"),
        (
            "Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is false.",
            "PlanError",
            "engine_host_code_allowed=True",
        ),
    ],
)
def test_diagnoses_of_what_this_tensorrt_cannot_make(plan: Plan, said: str, kind: str, match: str) -> None:
    with Engine(plan("affine")) as engine:
        error = engine._diagnose(engine._runtime, memoryview(plan("affine")), [f"[ERROR] {said}"])
    assert type(error) is getattr(trtrun, kind)
    assert re.search(match, error.message)
    assert said in str(error.log)


def test_host_code_is_off_unless_asked_for(plan: Plan) -> None:
    for asked in (False, True):
        with Engine(plan("affine"), engine_host_code_allowed=asked) as engine:
            assert engine._runtime.engine_host_code_allowed is asked


def test_bad_input_leaves_the_session_usable(plan: Plan) -> None:
    with trtrun.load(plan("affine")) as session:
        good = np.ones((2, 12), np.float32)
        expected = session(good)["y"]
        for bad in (np.ones((65, 12), np.float32), np.ones((2, 12)), np.ones(3, np.float32)):
            with pytest.raises(trtrun.InputError):
                session(bad)
            np.testing.assert_array_equal(session(good)["y"], expected)
