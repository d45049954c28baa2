from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import trtrun
from tests import models
from tests.unit.test_benchmark_report import _Page
from trtrun.building import BuildOptions, build_plan
from trtrun.building.graph import prepare
from trtrun.cli import app
from trtrun.comparison import build_verified, comparer, html, metrics
from trtrun.comparison.inputs import make_inputs
from trtrun.comparison.layers import MarkedModel
from trtrun.comparison.metrics import Tolerance, tensor_error
from trtrun.comparison.verification import refuse
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.plan import identify
from trtrun.tensor_spec import ShapeRange, TensorSpec, TensorSpecs

cli = CliRunner()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, model: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(model)
        return path

    return write


Write = Callable[[str, bytes], Path]


def test_a_model_agrees_with_itself(write: Write) -> None:
    path = write("a.onnx", models.convolution())
    result = trtrun.compare(path, path, shapes={"x": (2, 3, 8, 8)})
    assert result.within
    assert [output.name for output in result.outputs] == ["y", "pooled"]
    assert all(o.max_abs == o.max_rel == o.l2 == 0 and o.cosine == pytest.approx(1) for o in result.outputs)
    assert not result.layers
    assert len(trtrun.compare(path, path, shapes={"x": (2, 3, 8, 8)}, layers=True).layers) == 4


@pytest.mark.parametrize("layer", [0, 2, 18, 38])
def test_the_first_layer_that_differs_is_named(write: Write, layer: int) -> None:
    result = trtrun.compare(
        write("a.onnx", models.chain()), write("b.onnx", models.chain(perturbed=layer)), tolerance=Tolerance(l2=1e-4)
    )
    assert not result.within
    first = result.first_divergence
    assert first is not None
    assert (first.layer.node, first.layer.operator, first.layer.index) == (f"layer{layer}", "Mul", layer)
    assert len(result.layers) == 40
    assert all(found.error.l2 == 0 for found in result.layers[:layer])
    assert f"'layer{layer}' (Mul)" in " ".join(result.findings())


def test_a_layer_that_differs_is_found_behind_an_output_that_agrees(write: Write) -> None:
    hidden = models._model(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Add", ["h", "w"], ["s"], name="culprit"),
         helper.make_node("Sign", ["s"], ["y"])],
        [models.value("x", ["N", 4])], [models.value("y", ["N", 4])], {"w": np.float32([1])},
    )  # fmt: skip
    other = onnx.load_from_string(hidden)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([2]), "w"))
    result = trtrun.compare(write("a.onnx", hidden), write("b.onnx", other.SerializeToString()), layers=True)
    assert result.within
    assert result.first_divergence is not None
    assert result.first_divergence.layer.node == "culprit"


@pytest.mark.parametrize("kind", ["built", "engine"])
def test_layers_of_a_converted_engine_are_those_of_the_whole_converted_model(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = write("a.onnx", models.overflowing())
    options = BuildOptions(fp16=True)
    engine = comparer._Side(path, kind, options, 0, ())
    marked = engine.marked(path, tmp_path / "marked")
    for layer in marked.layers:  # each alone, and all together
        assert build_plan(marked.with_outputs([layer.tensor]))
        OnnxRuntimeSession(marked.with_outputs([layer.tensor]))
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.load(marked.with_outputs(["r", "b", "y"])).graph.output}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert types == {"r": half, "b": half, "y": single}
    # What the GPU would do, with ONNX Runtime in the place of the engine.
    reference = comparer._Side(path, "onnxruntime", options, 0, ())
    monkeypatch.setattr(
        comparer._Side, "run_marked",
        lambda side, path, arrays, dynamic: dict(OnnxRuntimeSession(path).run(arrays)),
    )  # fmt: skip
    x = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    empty = comparer.Comparison(("a", "b"), ("", ""), {}, 0, Tolerance(), ())
    result = comparer._with_layers(empty, (reference, engine), (x, x), {})
    assert result.first_divergence is not None
    assert result.first_divergence.layer.node == "culprit"
    assert not result.layer_failures
    assert any("converted to fp16" in note for note in result.notes) is (kind == "engine")


def test_tensors_that_cannot_be_outputs_are_listed_with_the_reason(write: Write) -> None:
    model = onnx.load_from_string(models.chain(10, perturbed=0))
    nodes = [
        helper.make_node("SequenceConstruct", ["t3", "t4"], ["sequence"]),
        helper.make_node("ConcatFromSequence", ["sequence"], ["joined"], axis=0),
        helper.make_node("ReduceSum", ["joined"], ["total"], keepdims=0),
    ]
    model.graph.node.extend(nodes)
    model.graph.output.append(models.value("total", []))
    other = onnx.load_from_string(model.SerializeToString())
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([3] * 8), "w0"))
    result = trtrun.compare(
        write("a.onnx", model.SerializeToString()), write("b.onnx", other.SerializeToString()), layers=True
    )
    assert list(result.layer_failures) == ["sequence"]
    assert "seq" in result.layer_failures["sequence"]
    assert len(result.layers) == 12
    assert "1 intermediate tensors could not be made outputs" in " ".join(result.findings())


def test_other_outputs_are_compared_where_the_build_options_name_them(write: Write) -> None:
    nodes = [
        helper.make_node("Neg", ["a"], ["h"]),
        helper.make_node("Mul", ["h", "w"], ["i"], name="culprit"),
        helper.make_node("Add", ["i", "b"], ["y"]),
    ]
    inputs = [models.value("a", ["N", 4]), models.value("b", ["N", 4])]
    one, two = (models._model(nodes, inputs, [models.value("y", ["N", 4])], {"w": np.float32([w])}) for w in (1, 2))
    a, b = write("a.onnx", one), write("b.onnx", two)
    result = trtrun.compare(a, b, build_options=trtrun.BuildOptions(outputs=("h", "i")))
    assert [(output.name, output.within) for output in result.outputs] == [("h", True), ("i", False)]
    assert list(result.inputs) == ["a"]
    assert result.first_divergence is not None
    assert result.first_divergence.layer.node == "culprit"
    with pytest.raises(trtrun.BuildError, match="computes no"):
        trtrun.compare(a, b, build_options=trtrun.BuildOptions(outputs=("z",)))


def test_nonfinite_values_are_found_and_their_first_layer_named(write: Write) -> None:
    model = models._model(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Log", ["h"], ["l"], name="log"),
         helper.make_node("Exp", ["l"], ["e"]), helper.make_node("Mul", ["l", "w"], ["y"])],
        [models.value("x", ["N", 4])], [models.value("y", ["N", 4]), models.value("e", ["N", 4])],
        {"w": np.float32([0, 1, 1, 1])},
    )  # fmt: skip
    path = write("a.onnx", model)
    x = np.float32([[-1, 2, -3, 4]])
    result = trtrun.compare(path, path, inputs={"x": x})
    assert result.within  # both have the same ones
    assert result.outputs[0].nonfinite == (2, 2)
    assert result.first_nonfinite is not None
    assert result.first_nonfinite.layer.node == "log"
    assert "'y' has non-finite values" in " ".join(result.findings())
    json.dumps(result.as_json(), allow_nan=False)


def test_dtypes_may_differ_and_both_get_the_same_numbers(write: Write) -> None:
    result = trtrun.compare(write("a.onnx", models.affine()), write("b.onnx", models.affine("float16")))
    assert result.within
    assert result.outputs[0].dtypes == ("float32", "float16")
    assert 0 < result.outputs[0].l2 < 2e-3
    specs = [TensorSpecs([TensorSpec("x", np.dtype(d), (4, 5))]) for d in ("float32", "float16")]
    a, b, _ = make_inputs(*specs, ranges={"x": (-3, 7)})
    assert (a["x"].dtype, b["x"].dtype) == ("float32", "float16")
    assert (a["x"] == b["x"]).all()
    assert a["x"].min() >= -3 and a["x"].max() <= 7 and np.ptp(a["x"]) > 5  # noqa: PT018


def test_random_inputs_are_those_of_the_seed_and_in_range() -> None:
    specs = TensorSpecs(
        [TensorSpec("f", np.dtype("float32"), (-1, 100)), TensorSpec("u", np.dtype("uint8"), (500,)),
         TensorSpec("i", np.dtype("int64"), (500,)), TensorSpec("b", np.dtype("bool"), (50,))]
    )  # fmt: skip
    one, _, sources = make_inputs(specs, specs, seed=1)
    again, _, _ = make_inputs(specs, specs, seed=1, shapes={"f": (2, 100)})
    other, _, _ = make_inputs(specs, specs, seed=2, ranges={"i": (5, 6)})
    assert one["f"].shape == (1, 100)
    assert again["f"].shape == (2, 100)
    assert (one["u"] == again["u"]).all()
    assert (one["u"] != other["u"]).any()
    assert set(np.unique(other["i"])) == {5, 6}
    assert set(np.unique(one["b"])) == {False, True}
    assert one["u"].max() > 200
    assert sources["i"] == "random integers 0 to 9"
    tuned = TensorSpecs([TensorSpec("x", np.dtype("float32"), (-1, 3), (ShapeRange((1, 3), (4, 3), (8, 3)),))])
    plain = TensorSpecs([TensorSpec("x", np.dtype("float32"), (-1, 3))])
    assert make_inputs(plain, tuned)[0]["x"].shape == (4, 3)


F32, I64 = np.dtype("float32"), np.dtype("int64")


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "says"),
    [
        (("x", F32, (2,)), ("y", F32, (2,)), {}, trtrun.InputNameError, "different inputs"),
        (("x", F32, (2,)), ("x", I64, (2,)), {}, trtrun.DtypeError, "float32 in one model and int64"),
        (("x", F32, (1, -1)), ("x", F32, (1, -1)), {}, trtrun.ShapeError, "--shape x=1x64"),
        (("x", F32, (2,)), ("x", F32, (3,)), {}, trtrun.ShapeError, "is 2 in one and 3 in the other"),
        (("x", F32, (2,)), ("x", F32, (2,)), {"ranges": {"z": (0, 1)}}, trtrun.InputNameError, r"\['z'\]"),
        (("x", F32, (2,)), ("x", F32, (2,)), {"ranges": {"x": (2, 1)}}, trtrun.InputError, "2:1"),
        (("x", I64, (2,)), ("x", I64, (2,)), {"ranges": {"x": (0.5, 1)}}, trtrun.InputError, "int64"),
        (("x", F32, (2,)), ("x", F32, (2,)), {"values": {"x": np.zeros(2)}}, trtrun.DtypeError, "float64"),
        (("x", F32, (-1,)), ("x", F32, (-1,)), {"shapes": {"x": (-2,)}}, trtrun.ShapeError, "negative"),
    ],
)
def test_requests_that_do_not_fit(a: tuple, b: tuple, options: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make_inputs(TensorSpecs([TensorSpec(*a)]), TensorSpecs([TensorSpec(*b)]), **options)


@pytest.mark.parametrize(
    ("a", "b", "given", "says"),
    [
        ("uint8", "int8", [200], "'x' is int8 .* does not hold 200: "),
        ("int8", "uint8", [3, -1], "'x' is uint8 .* does not hold -1: "),
        ("int64", "int32", [2**40 + 5], f"does not hold {2**40 + 5}: "),
        ("uint64", "int64", [2**64 - 1], f"'x' is int64 .* does not hold {2**64 - 1}: "),
        ("int32", "bool", [5], "'x' is bool .* does not hold 5: "),
        ("int8", "int4", [8], "'x' is int4 .* does not hold 8: "),
        ("float32", "float16", [np.inf, 1e6], "'x' is float16 .* does not hold 1000000.0: "),
    ],
)
def test_numbers_that_one_model_cannot_hold_are_not_changed(a: str, b: str, given: list, says: str) -> None:
    specs = [TensorSpecs([TensorSpec("x", np.dtype(getattr(ml_dtypes, d, d)), (-1,))]) for d in (a, b)]
    values = {"x": np.array(given, specs[0]["x"].dtype)}
    with pytest.raises(trtrun.DtypeError, match=says):
        make_inputs(*specs, values=values)
    one, other, _ = make_inputs(*specs, values={"x": np.minimum(np.abs(values["x"]), 1)})
    assert one["x"].tolist() == other["x"].tolist()


@pytest.mark.parametrize(("a", "b", "most"), [("int4", "int4", 7), ("int64", "uint2", 3), ("int8", "bool", 1)])
def test_random_integers_are_those_of_both_models(a: str, b: str, most: int) -> None:
    specs = [TensorSpecs([TensorSpec("x", np.dtype(getattr(ml_dtypes, d, d)), (500,))]) for d in (a, b)]
    one, other, _ = make_inputs(*specs)
    assert set(one["x"].tolist()) == set(other["x"].tolist()) == set(range(most + 1))
    with pytest.raises(trtrun.InputError, match=f"{b}.* numbers"):
        make_inputs(*specs, ranges={"x": (0, most + 1)})


def test_a_shape_tensor_is_not_made_up() -> None:
    specs = TensorSpecs([TensorSpec("k", I64, (1,), location="host")])
    with pytest.raises(trtrun.InputError, match="cannot be made up"):
        make_inputs(specs, specs)
    assert make_inputs(specs, specs, values={"k": np.array([3])})[0]["k"].tolist() == [3]


def test_metrics() -> None:
    a = np.float32([3, 4, 0, 1e-9])
    error = tensor_error("t", a, a + np.float32([0, 1, 0.5, 0]), Tolerance())
    assert error.max_abs == 1
    assert error.max_rel == 0.25  # zeros and what is near them are left out
    assert error.l2 == pytest.approx(np.sqrt(1.25) / np.sqrt(9 + 25 + 0.25))
    assert error.cosine == pytest.approx((9 + 20) / (5 * np.sqrt(34.25)))
    assert not error.within
    huge = np.array([1e200, 2e200])
    assert tensor_error("t", huge, huge, Tolerance()).within
    assert tensor_error("t", huge, -huge, Tolerance()).l2 == pytest.approx(2)
    zero = np.zeros(3, np.float32)
    assert tensor_error("t", zero, zero, Tolerance()).cosine == 1
    assert tensor_error("t", zero, zero + 1, Tolerance()).cosine == 0
    nothing = tensor_error("t", zero[:0], zero[:0], Tolerance())
    assert (nothing.within, nothing.problem) == (False, "it has no elements")
    nan = np.full(3, np.nan)
    nothing = tensor_error("t", nan, nan, Tolerance())
    assert (nothing.within, nothing.nonfinite, nothing.problem) == (False, (3, 3), "no element is finite in both")
    assert tensor_error("t", zero, zero[:2], Tolerance()).problem == "shapes differ: 3 and 2"


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "within"),
    [
        ([1.0, 2.0], [1.0, 2.01], Tolerance(), True),
        ([1.0, 2.0], [1.0, 2.1], Tolerance(), False),
        ([1.0, 2.0], [1.0, 2.1], Tolerance(l2=None, cosine=0.99), True),
        ([1.0, 2.0], [1.0, 2.1], Tolerance(l2=None, max_abs=0.05), False),
        ([1.0, 2.0], [1.0, 2.1], Tolerance(l2=None, max_rel=0.051), True),
        ([0.0, 0.0], [0.0, 1e-7], Tolerance(), True),
        ([1, 1000], [1, 1001], Tolerance(), False),
        ([1, 1000], [1, 1001], Tolerance(max_abs=1), True),
        ([True, False], [True, True], Tolerance(), False),
        ([np.nan, 1.0], [np.nan, 1.0], Tolerance(), True),
        ([np.nan, 1.0], [np.inf, 1.0], Tolerance(), False),
        ([np.inf, 1.0], [-np.inf, 1.0], Tolerance(), False),
        ([np.inf, 1.0], [np.inf, 1.0], Tolerance(), True),
        ([1.0, 1.0], [1.0, np.nan], Tolerance(), False),
    ],
)
def test_tolerance(a: list, b: list, tolerance: Tolerance, within: bool) -> None:
    assert tensor_error("t", np.array(a), np.array(b), tolerance).within is within


@pytest.mark.parametrize(
    ("a", "b", "max_abs"),
    [
        (np.array([2**53]), np.array([2**53 + 1]), 1),
        (np.array([1, 2**60]), np.array([3, 2**60 + 100]), 100),
        (np.array([-(2**63)]), np.array([2**63 - 1]), 2**64 - 1),
        (np.array([-1]), np.array([2**64 - 1], np.uint64), 2**64),
        (np.array([True]), np.array([2**64 - 1], np.uint64), 2**64 - 2),
        (np.array([-8, 7], ml_dtypes.int4), np.array([-8, 6], ml_dtypes.int4), 1),
        (np.array([3], ml_dtypes.uint2), np.array([2], np.int8), 1),
    ],
)
def test_integers_are_compared_exactly(a: np.ndarray, b: np.ndarray, max_abs: int) -> None:
    loose = Tolerance(l2=2, atol=2.0**65)  # which are for floating point alone
    for tolerance in (Tolerance(), loose, dataclasses.replace(loose, max_abs=0)):
        error = tensor_error("y", a, b, tolerance)
        assert (error.within, error.max_abs) == (False, float(max_abs))
        assert tensor_error("y", a, a, tolerance).within
    assert tensor_error("y", a, b, Tolerance(max_abs=float(max_abs))).within


def test_outputs_that_only_one_has_are_out_of_tolerance(write: Write) -> None:
    more = onnx.load_from_string(models.affine())
    more.graph.output.append(models.value("s", ["N", 5]))
    a, b = write("a.onnx", models.affine()), write("b.onnx", more.SerializeToString())
    assert [o.problem for o in trtrun.compare(a, b).outputs] == [None, "the reference does not have it"]
    assert [o.problem for o in trtrun.compare(b, a).outputs] == [None, "only the reference has it"]


def test_external_data_is_found(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(
        onnx.load_from_string(models.chain(6)), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    result = trtrun.compare(path, write("b.onnx", models.chain(6, perturbed=4)), tolerance=Tolerance(l2=1e-4))
    assert result.first_divergence is not None
    assert result.first_divergence.layer.node == "layer4"


def test_a_changed_graph_is_marked_with_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(
        onnx.load_from_string(models.chain(3)), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    graph, _ = prepare(path, BuildOptions(input_shapes={"x": (5, 8)}))
    marked = MarkedModel(path, tmp_path / "marked", graph)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    with OnnxRuntimeSession(marked.with_outputs(["y"])) as changed, OnnxRuntimeSession(path) as original:
        np.testing.assert_array_equal(changed(x)["y"], original(x)["y"])


def test_layers_that_are_marked_build_into_engines(write: Write, tmp_path: Path) -> None:
    """TensorRT wants the types of outputs, which files seldom declare for intermediate tensors."""
    marked = MarkedModel(write("a.onnx", models.chain(10)), tmp_path / "marked")
    names = [layer.tensor for layer in marked.layers]
    assert names == [*(f"t{index}" for index in range(1, 10)), "y"]
    fixed = ShapeRange((2, 8), (2, 8), (2, 8))
    plan = build_plan(marked.with_outputs(names), BuildOptions(profiles=({"x": fixed},)))
    assert identify(plan).family == "tensorrt_rtx"
    assert [value.name for value in onnx.load(marked.with_outputs(names[2:4])).graph.output] == names[2:4]


def test_the_page_is_whole_and_needs_nothing_else(write: Write) -> None:
    result = trtrun.compare(
        write("a.onnx", models.chain()), write("<b>.onnx", models.chain(perturbed=18)), tolerance=Tolerance(l2=1e-4)
    )
    page = html(result)
    parsed = _Page(page)
    assert not parsed.open
    assert not parsed.references
    assert page.count("<rect") == 40
    assert page.count('<rect class="first"') == 1
    assert "misses the tolerance" in page
    assert "<b>.onnx" not in page
    agrees = html(trtrun.compare(write("a.onnx", models.chain()), write("a.onnx", models.chain())))
    assert "within the tolerance" in agrees
    assert "<svg" not in agrees


@pytest.mark.parametrize("width", [1280, 420])
def test_the_verdict_of_each_layer_is_seen_without_scrolling(write: Write, browser: Any, width: int) -> None:
    tensor = trtrun.compare(write("a.onnx", models.chain()), write("b.onnx", models.chain(perturbed=18)))
    long = [
        dataclasses.replace(
            found,
            layer=dataclasses.replace(found.layer, node="/backbone/features.0/depthwise_conv/BatchNormalization"),
            error=dataclasses.replace(
                found.error, name="/backbone/features.0/depthwise_conv/BatchNormalization_output_0"
            ),
        )
        for found in tensor.layers
    ]
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content(html(dataclasses.replace(tensor, layers=tuple(long))))
    table = page.locator(".wide", has=page.locator("th", has_text="node"))
    for column, title in ((2, ""), (3, "rel L2")):
        head = table.locator(f"thead th:nth-child({column})")
        assert head.inner_text() == title
        box, frame = head.bounding_box(), table.bounding_box()
        assert box["x"] + box["width"] <= frame["x"] + frame["width"]
    assert table.locator("tbody tr:nth-child(1) td").first.inner_text() == "ok"
    if width == 1280:
        assert table.evaluate("wide => wide.scrollWidth <= wide.clientWidth")
    # A swatch stays beside its word.
    for swatch in page.locator(".legend span", has=page.locator("i")).all():
        assert swatch.bounding_box()["height"] < 30
    page.close()


def test_command(write: Write, tmp_path: Path) -> None:
    a, b = str(write("a.onnx", models.chain())), str(write("b.onnx", models.chain(perturbed=2)))
    assert cli.invoke(app, ["compare", a, a]).exit_code == 0
    result = cli.invoke(app, ["compare", a, b, "--l2", "1e-4", "--json", "--range", "x=-1:1", "--shape", "x=3x8"])
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["first_divergence"]["node"] == "layer2"
    assert facts["inputs"]["x"] == {"dtype": "float32", "shape": [3, 8], "source": "random in [-1, 1)"}
    assert len(facts["layers"]) == 40
    page = tmp_path / "page.html"
    result = cli.invoke(app, ["compare", a, a, "--report", str(page)])
    assert result.exit_code == 0
    assert "<svg" in page.read_text()
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    result = cli.invoke(app, ["compare", a, b, "--inputs", str(tmp_path / "x.npz"), "--max-abs", "1e-5"])
    assert result.exit_code == 1
    assert "misses" in result.stdout
    assert "5×8, given" in result.stdout
    assert "layer2" in result.stdout
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "text.npz").write_text("no archive")
    for file in ("x.npy", "text.npz", "none.npz"):
        failed = cli.invoke(app, ["compare", a, a, "--inputs", str(tmp_path / file)])
        assert isinstance(failed.exception, trtrun.InputError), failed.exception
    for option in (["--range", "x=1"], ["--range", "0:1"], ["--shape", "3x8"]):
        assert isinstance(cli.invoke(app, ["compare", a, a, *option]).exception, trtrun.InputError)


def test_without_a_gpu_nothing_pretends_to_be_an_engine(write: Write, tmp_path: Path) -> None:
    from trtrun.cuda.device import gpu_count

    if gpu_count():
        pytest.skip("this machine has a GPU")
    path = write("a.onnx", models.affine(batch=3))
    with pytest.raises(trtrun.NoGpuError, match=r"which this needs: .*a\.onnx, built\. Compare on a machine"):
        trtrun.compare(path)
    with pytest.raises(trtrun.NoGpuError):
        trtrun.compare(path, path, build=True)
    with pytest.raises(trtrun.NoGpuError, match="--verify"):
        build_verified(path)
    failed = cli.invoke(app, ["build", str(path), "--verify"])
    assert isinstance(failed.exception, trtrun.NoGpuError)
    assert str(failed.exception).endswith(f": trtrun compare {path} {path.with_suffix('.engine')}")
    failed = cli.invoke(app, ["build", str(path), "--verify", "-o", "my v.engine"])
    assert str(failed.exception).endswith(f": trtrun compare {path} 'my v.engine'")
    assert not path.with_suffix(".engine").exists()
    engine = trtrun.build(path)
    with pytest.raises(trtrun.NoGpuError):
        trtrun.compare(path, engine)
    with pytest.raises(trtrun.InputError, match="is an engine already"):
        trtrun.compare(path, engine, build=True)


def test_an_engine_that_is_refused_is_not_written(write: Write) -> None:
    path, other = write("a.onnx", models.chain()), write("b.onnx", models.chain(perturbed=6))
    refused = trtrun.compare(path, other, tolerance=Tolerance(l2=1e-4))
    plans = []

    def check(plan: bytes) -> None:
        plans.append(plan)
        refuse(refused)

    engine = path.with_suffix(".engine")
    with pytest.raises(trtrun.VerificationError, match=r"(?s)was not kept.*y: relative L2.*'layer6' \(Mul\)"):
        trtrun.build(path, check=check)
    assert len(plans[0]) > 1000
    assert sorted(p.name for p in path.parent.iterdir() if p.is_file()) == ["a.onnx", "b.onnx"]
    refuse(trtrun.compare(path, path))
    assert trtrun.build(path, check=lambda plan: None) == engine


def test_files_that_are_no_models_are_said_to_be_none(write: Write) -> None:
    path, text = write("a.onnx", models.affine()), write("notes.txt", b"some text that is long enough to be a header")
    with pytest.raises(trtrun.PlanError, match=r"notes\.txt is not a TensorRT plan"):
        trtrun.compare(path, text)
    with pytest.raises(trtrun.ModelFileError, match="does not exist"):
        trtrun.compare(path, text.with_name("none.onnx"))


def test_missing_tensors_are_never_within() -> None:
    assert not metrics.missing("t", "gone").within


def test_input_shapes_of_inputs_that_the_chosen_outputs_do_not_need(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Neg", ["h"], ["y"]),
        helper.make_node("Exp", ["b"], ["z"]),
    ]
    inputs, outputs = ([models.value(name, [1, 4]) for name in names] for names in ("ab", "yz"))
    path = tmp_path / "m.onnx"
    path.write_bytes(models._model(nodes, inputs, outputs, {}))
    options = trtrun.BuildOptions(input_shapes={"a": (-1, 4), "b": (-1, 4)}, outputs=("y",))
    result = trtrun.compare(path, path, inputs={"a": np.ones((3, 4), np.float32)}, build_options=options, layers=True)
    assert result.within
    assert len(result.layers) == 2
    built = comparer._Side(path, "built", options, 0, ())
    marked = built.marked(path, tmp_path / "marked").with_outputs(["h", "y"])
    assert build_plan(marked, dataclasses.replace(options, **comparer._CONVERTED))
