"""Engines compared with ONNX Runtime, on a GPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import helper
from typer.testing import CliRunner

import trtrun
from tests import models
from tests.gpu.conftest import TF32, relative_error
from trtrun.building.quantization import quantize
from trtrun.cli import app
from trtrun.comparison import build_verified

SHAPES = trtrun.BuildOptions(profiles=({"x": trtrun.ShapeRange((1, 8), (4, 8), (16, 8))},))


@pytest.fixture
def onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTRUN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "chain.onnx"
    path.write_bytes(models.chain())
    return path


def test_an_onnx_file_agrees_with_the_engine_built_of_it_in_every_layer(onnx_file: Path) -> None:
    result = trtrun.compare(onnx_file, build_options=SHAPES, layers=True)
    assert result.within
    assert result.inputs["x"][1] == (4, 8)  # what the engine was tuned for
    assert "ONNX Runtime" in result.backends[0]
    assert "TensorRT" in result.backends[1]
    assert len(result.layers) + len(result.layer_failures) == 40
    assert len(result.layers) >= 38
    assert result.first_divergence is None


def test_an_engine_of_another_model_differs_and_the_layers_say_what_they_are(onnx_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(models.chain(perturbed=18))
    engine = trtrun.build(other, options=SHAPES)
    result = trtrun.compare(onnx_file, engine)
    assert not result.within
    assert "built from the ONNX file" in result.notes[0]
    built = trtrun.compare(onnx_file, other, build=True, build_options=SHAPES)
    assert not built.within
    assert built.first_divergence is not None
    assert built.first_divergence.layer.node == "layer18"


def test_two_engines_are_compared_by_their_outputs(onnx_file: Path, tmp_path: Path) -> None:
    engine = trtrun.build(onnx_file, options=SHAPES)
    result = trtrun.compare(engine, engine, layers=True)
    assert result.within
    assert not result.layers
    assert "neither model is an ONNX file" in result.notes[0]


def test_verification_keeps_what_agrees_and_refuses_what_does_not(onnx_file: Path, tmp_path: Path) -> None:
    kept, result = build_verified(onnx_file, options=SHAPES)
    assert result.within
    assert kept.exists()
    conv = tmp_path / "conv.onnx"
    conv.write_bytes(models.convolution())
    shape = (1, 3, 64, 64)
    options = trtrun.BuildOptions(profiles=({"x": trtrun.ShapeRange(shape, shape, shape)},))
    inside, result = build_verified(
        onnx_file, tmp_path / "inside.engine", options=dataclasses.replace(SHAPES, outputs=("t5",))
    )
    assert inside.exists()
    assert [output.name for output in result.outputs] == ["t5"]
    impossible = trtrun.Tolerance(l2=0.0, atol=0.0)
    with pytest.raises(trtrun.VerificationError, match="was not kept"):
        build_verified(conv, options=options, tolerance=impossible, ranges={"x": (-1, 1)})
    assert not conv.with_suffix(".engine").exists()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("keep_io", [True, False])
def test_lower_precision_is_as_exact_as_it_can_be(precision: str, keep_io: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxconverter_common")
    path = tmp_path / "conv.onnx"
    path.write_bytes(models.convolution())
    shape = (1, 3, 64, 64)
    profiles = ({"x": trtrun.ShapeRange(shape, shape, shape)},)
    options = trtrun.BuildOptions(profiles=profiles, keep_io=keep_io, **{precision: True})
    x = np.random.default_rng().standard_normal(shape).astype(np.float32)
    wanted = trtrun.OnnxRuntimeSession(path)(x)
    with trtrun.load(path, build_options=options) as session:
        dtype = session.inputs["x"].dtype
        assert dtype == (np.float32 if keep_io else np.float16 if precision == "fp16" else ml_dtypes.bfloat16)
        for name, array in session(x.astype(dtype)).items():
            error = np.linalg.norm(array.astype(np.float64) - wanted[name]) / np.linalg.norm(wanted[name])
            assert 1e-5 < error < (2e-3 if precision == "fp16" else 2e-2)


def test_the_layer_that_overflows_fp16_is_found(tmp_path: Path) -> None:
    pytest.importorskip("onnxconverter_common")
    path = tmp_path / "model.onnx"
    path.write_bytes(models.overflowing())
    options = trtrun.BuildOptions(fp16=True)
    engine = trtrun.build(path, options=options)
    for result in (
        trtrun.compare(path, build_options=options),
        trtrun.compare(path, engine, build_options=options),
    ):
        assert [output.within for output in result.outputs] == [True, False]
        assert result.first_divergence is not None
        assert result.first_divergence.layer.node == "culprit"
        assert not result.layer_failures
    assert "converted to fp16" in result.notes[0]
    assert trtrun.compare(path, engine).first_divergence is None  # the layers of an fp32 engine, as the note says
    command = ["compare", str(path), str(engine), "--fp16", "--json"]
    facts = json.loads(CliRunner().invoke(app, command).stdout)
    assert facts["first_divergence"]["node"] == "culprit"
    with pytest.raises(trtrun.VerificationError, match="culprit"):
        build_verified(path, tmp_path / "refused.engine", options=options)
    with pytest.raises(trtrun.VerificationError, match=r"y: (no element is finite|relative L2)"):
        build_verified(path, tmp_path / "refused.engine", options=options)
    assert not (tmp_path / "refused.engine").exists()
    kept, _ = build_verified(path, tmp_path / "kept.engine", options=dataclasses.replace(options, keep_fp32=("Conv",)))
    assert kept.exists()


@pytest.mark.parametrize("name", ["convolution", "affine"])
def test_without_tf32_products_are_those_of_fp32(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(getattr(models, name)())
    shape = (1, 3, 64, 64) if name == "convolution" else (4, 12)
    options = trtrun.BuildOptions(profiles=({"x": trtrun.ShapeRange(shape, shape, shape)},), tf32=False)
    x = np.random.default_rng().standard_normal(shape).astype(np.float32)
    wanted = trtrun.OnnxRuntimeSession(path)(x)
    with trtrun.load(path, build_options=options) as session:
        for output, array in session(x).items():
            assert relative_error(array, wanted[output]) <= 1e-5


def test_a_convolution_that_a_large_bias_drowns(tmp_path: Path) -> None:
    """Emulated in fp16 throughout, as TensorRT-RTX computes it, the error is 0.016."""
    rng = np.random.default_rng()
    x = rng.uniform(0, 8, (1, 32, 24, 24)).astype(np.float16).astype(np.float32)
    kernels = rng.uniform(0, 1, (16, 32, 3, 3)).astype(np.float32)
    weights = {"k": kernels, "b": -4 * kernels.sum((1, 2, 3))}  # 59 times the kernels' norm, and near what they give
    node = helper.make_node("Conv", ["x", "k", "b"], ["y"], name="drowned")
    path = tmp_path / "model.onnx"
    inputs, outputs = [models.value("x", [1, 32, 24, 24])], [models.value("y", [1, 16, 22, 22])]
    path.write_bytes(models._model([node], inputs, outputs, weights))
    wanted = trtrun.OnnxRuntimeSession(path)(x)["y"]
    with trtrun.load(path, build_options=trtrun.BuildOptions(fp16=True)) as session:
        assert relative_error(session(x)["y"], wanted) <= TF32


def test_fp8_computes_what_its_graph_says(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    shape = (2, 3, 32, 32)
    requests = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(8)]
    quantized = quantize(models.convolution(), requests, precision="fp8")
    path = tmp_path / "conv.fp8.onnx"
    path.write_bytes(quantized)
    options = trtrun.BuildOptions(profiles=({"x": trtrun.ShapeRange(shape, shape, shape)},))
    reference, full = trtrun.OnnxRuntimeSession(path), trtrun.OnnxRuntimeSession(models.convolution())
    with trtrun.load(path, build_options=options) as session:
        for request in requests:
            actual, wanted, exact = session.run(request), reference.run(request), full.run(request)
            for name, array in actual.items():
                assert np.linalg.norm(array - wanted[name]) <= 0.02 * np.linalg.norm(wanted[name])
                assert 1e-4 < np.linalg.norm(array - exact[name]) / np.linalg.norm(exact[name]) < 0.1


def test_fp8_products_in_an_fp16_network(tmp_path: Path) -> None:
    pytest.importorskip("onnxconverter_common")
    rng = np.random.default_rng()
    for name, shape in (("convolution", (2, 3, 32, 32)), ("affine", (4, 12))):
        model = getattr(models, name)()
        requests = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(8)]
        quantized = quantize(model, requests, precision="fp8")
        path = tmp_path / f"{name}.fp8.onnx"
        path.write_bytes(quantized)
        profiles = ({"x": trtrun.ShapeRange(shape, shape, shape)},)
        reference = trtrun.OnnxRuntimeSession(path)
        with trtrun.load(path, build_options=trtrun.BuildOptions(profiles=profiles, fp16=True, keep_io=False)) as fp16:
            assert fp16.inputs["x"].dtype == np.float16
            for request in requests:
                x = request["x"].astype(np.float16)  # both get what fp16 holds of it: fp8 has few steps, and large ones
                actual = fp16.run({"x": x})
                for output, wanted in reference.run({"x": x.astype(np.float32)}).items():
                    error = np.linalg.norm(actual[output].astype(np.float64) - wanted) / np.linalg.norm(wanted)
                    assert 1e-5 < error < 0.03, (name, output, error)


def test_commands(onnx_file: Path, tmp_path: Path) -> None:
    cli, shape = CliRunner(), ["--shape", "x=1x8:4x8:16x8"]
    assert cli.invoke(app, ["build", str(onnx_file), *shape, "--verify"]).exit_code == 0
    engine = onnx_file.with_suffix(".engine")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32))
    result = cli.invoke(app, ["compare", str(onnx_file), str(engine), "--inputs", str(tmp_path / "x.npz"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["inputs"]["x"]["shape"] == [3, 8]
    other = tmp_path / "other.onnx"
    other.write_bytes(models.chain(perturbed=0))
    assert cli.invoke(app, ["compare", str(other), str(engine)]).exit_code == 1
