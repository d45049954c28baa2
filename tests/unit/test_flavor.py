from __future__ import annotations

import ast
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import trtrun
from tests import models
from trtrun import flavor
from trtrun.plan import PlanInfo

INSTALLED: list[flavor.FlavorName] = ["tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch"]
SOURCE = Path(trtrun.__file__).parent

# TensorRT's classes by the names that each file of the runtime path gives their objects.
OWNERS = {
    "engine": {
        "trt": "",
        "module": "",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "handle": "ICudaEngine",
        "_engine": "ICudaEngine",
        "config": "IRuntimeConfig",
    },
    "runtime_cache": {"cache": "IRuntimeCache", "_handle": "IRuntimeCache", "config": "IRuntimeConfig"},
    "route": {"context": "IExecutionContext", "_context": "IExecutionContext"},
    "output_allocator": {"module": ""},
    "plan_reader": {"module": "", "runtime": "Runtime"},
}
# Attributes that exist only where a capability says so.
CONDITIONAL = {
    "Runtime.get_engine_validity": "has_engine_validity",
    "Runtime.engine_header_size": "has_engine_validity",
    "IStreamReaderV2": "has_stream_reader",
    "ICudaEngine.create_runtime_config": "has_runtime_config",
    "IRuntimeCache.deserialize": "has_runtime_cache",
    "IRuntimeCache.serialize": "has_runtime_cache",
    "IRuntimeConfig.create_runtime_cache": "has_runtime_cache",
    "IRuntimeConfig.set_runtime_cache": "has_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": "has_kernel_specialization",
    "DynamicShapesKernelSpecializationStrategy": "has_kernel_specialization",
    "IExecutionContext.is_stream_capturable": "has_stream_capturable",
}


def runtime_surface() -> set[str]:
    """Every attribute of TensorRT's objects that the runtime path uses, read from the source itself."""
    surface = set()
    for name, owners in OWNERS.items():
        for node in ast.walk(ast.parse((SOURCE / f"{name}.py").read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            value = node.value
            owner = (
                value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else None
            )
            if owner in owners:
                surface.add(f"{owners[owner]}.{node.attr}".lstrip("."))
    return surface


def exists(module: object, path: str) -> bool:
    for part in path.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def test_the_surface_is_found() -> None:
    surface = runtime_surface()
    assert {
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.get_tensor_name",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "TensorIOMode",
    } <= surface
    assert CONDITIONAL.keys() <= surface
    assert {"IRuntimeCache.serialize", "IOutputAllocator", "Runtime"} <= surface


@pytest.mark.parametrize("name", INSTALLED)
def test_the_runtime_surface_exists_where_the_capabilities_say_so(name: flavor.FlavorName) -> None:
    loaded = flavor.load(name)
    for path in runtime_surface():
        condition = CONDITIONAL.get(path)
        expected = getattr(loaded.capabilities, condition) if condition else True
        if "." in path and condition and not exists(loaded.module, path.split(".")[0]):
            continue
        assert exists(loaded.module, path) == expected, path


@pytest.mark.parametrize("name", INSTALLED)
def test_capabilities(name: flavor.FlavorName) -> None:
    capabilities = flavor.load(name).capabilities
    full = name == "tensorrt_rtx"
    assert capabilities.can_build is full
    assert capabilities.has_plugin_library is full
    assert capabilities.has_stream_reader
    assert capabilities.version == ("1.6.1.120" if full else "11.4.0.106")


@pytest.mark.parametrize("version", ["10.7.0.23", "10.8.0.43"])
def test_a_stream_reader_that_must_give_all_at_once_is_not_used(version: str) -> None:
    module = SimpleNamespace(__version__=version, IStreamReaderV2=object)
    assert not flavor._inspect("tensorrt", module).has_stream_reader
    assert not flavor._inspect("tensorrt", SimpleNamespace(__version__="10.3.0.26")).has_stream_reader
    module.__version__ = "10.9.0.34"
    assert flavor._inspect("tensorrt", module).has_stream_reader


def test_several_flavours_live_in_one_process() -> None:
    loaded = [flavor.load(name) for name in INSTALLED]
    assert len({id(one.module) for one in loaded}) == 3
    assert flavor.load("tensorrt_rtx") is loaded[0]  # one logger each, whatever asks


def test_stubs_are_not_taken_for_tensorrt() -> None:
    assert "tensorrt" not in flavor.installed()
    with pytest.raises(trtrun.MissingPackageError, match=r"pip install 'trtrun\[tensorrt\]'"):
        flavor.load("tensorrt")


def test_the_plan_chooses_the_flavour() -> None:
    rtx = PlanInfo("tensorrt_rtx", (1, 6, 1, 120), 1000)
    assert flavor.for_plan(rtx).capabilities.name == "tensorrt_rtx"
    full = PlanInfo("tensorrt", (11, 4, 0, 106), 1000)
    assert flavor.for_plan(full).capabilities.name == "tensorrt_lean"
    with pytest.raises(trtrun.PlanMismatchError, match=r"1\.5\.0\.114.*1\.6\.1\.120"):
        flavor.for_plan(PlanInfo("tensorrt_rtx", (1, 5, 0, 114), 1000))


def test_no_flavour_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavor, "_is_installed", lambda name: False)
    with pytest.raises(trtrun.MissingPackageError, match=r"pip install 'trtrun\[rtx\]'"):
        flavor.for_plan(PlanInfo("tensorrt_rtx", (1, 6, 1, 120), 1000))
    with pytest.raises(trtrun.MissingPackageError, match=r"pip install 'trtrun\[rtx\]'"):
        flavor.for_building()


def test_dtypes() -> None:
    rtx = flavor.load("tensorrt_rtx")
    kinds = rtx.module.DataType
    assert rtx.to_numpy_dtype(kinds.HALF, "x") == np.float16
    assert rtx.to_numpy_dtype(kinds.BF16, "x").name == "bfloat16"
    assert rtx.to_numpy_dtype(kinds.FP8, "x").name == "float8_e4m3fn"
    for kind in kinds.__members__.values():
        assert rtx.to_numpy_dtype(kind, "x").itemsize in (1, 2, 4, 8)
    with pytest.raises(trtrun.UnsupportedTensorError, match="'x' has dtype FP2"):
        rtx.to_numpy_dtype(SimpleNamespace(name="FP2"), "x")


def test_tensorrt_messages_reach_logging_and_the_failure(caplog: pytest.LogCaptureFixture) -> None:
    rtx = flavor.load("tensorrt_rtx")
    builder = rtx.module.Builder(rtx.logger.handle)
    network = builder.create_network(0)  # held: the parser does not keep it alive
    parser = rtx.module.OnnxParser(network, rtx.logger.handle)
    broken = models.affine().replace(b"MatMul", b"NoSuch")
    with rtx.logger.capture() as lines:
        assert not parser.parse(broken)
    assert any("NoSuch" in line and line.startswith("[ERROR]") for line in lines)
    assert any(r.name == "trtrun.tensorrt" and r.levelno == logging.ERROR for r in caplog.records)


def test_min_severity_drops_what_is_less_severe(caplog: pytest.LogCaptureFixture) -> None:
    logger = flavor.Logger(flavor.load("tensorrt_rtx").module, min_severity="ERROR")
    caplog.set_level(logging.DEBUG, "trtrun.tensorrt")
    severity = flavor.load("tensorrt_rtx").module.ILogger
    for name in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        logger.handle.log(getattr(severity, name), name)
    assert [r.message for r in caplog.records] == ["ERROR", "INTERNAL_ERROR"]


def test_missing_plugin_library() -> None:
    with pytest.raises(trtrun.PluginError, match="does not exist"):
        flavor.load("tensorrt_rtx").initialize_plugins(["/no/such/plugin.so"])


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plugin.so"
    path.write_bytes(b"not a library")
    with pytest.raises(trtrun.PluginError, match="cannot be loaded"):
        flavor.load("tensorrt_rtx").initialize_plugins([path])


def test_a_tensorrt_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavor, "_REQUIRED", ("IExecutionContext.of_the_future",))
    with pytest.raises(trtrun.MissingPackageError, match=r"too old: it has no IExecutionContext\.of_the_future"):
        flavor._load.__wrapped__("tensorrt_rtx")  # past the cache, which must keep its one logger
