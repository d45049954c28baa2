from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import trtrun
from tests import models
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, closest, parse_bytes, parse_shape, parse_shapes
from trtrun.plan import identify
from trtrun.tensor_spec import ShapeRange


def one_node(operator: str, inputs: int = 1, domain: str = "", **attributes: object) -> bytes:
    names = [f"x{i}" for i in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], name="culprit", domain=domain, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return serialized


def test_builds_without_a_gpu_and_writes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "affine.onnx"
    path.write_bytes(models.affine(batch=3))
    engine = trtrun.build(path)
    assert engine == tmp_path / "affine.engine"
    assert identify(engine.read_bytes()).family == "tensorrt_rtx"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["affine.engine", "affine.onnx"]


YOLO = {
    "description": "Ultralytics YOLOv8n model",
    "version": "8.3",
    "task": "detect",
    "stride": "32",
    "batch": "1",
    "imgsz": "[640, 640]",
    "names": "{0: 'person', 1: 'bi[red]cycle'}",
    "args": "{'nms': False, 'half': None}",
}
IN_FRONT = {
    **YOLO,
    "stride": 32,
    "batch": 1,
    "imgsz": [640, 640],
    "names": {"0": "person", "1": "bi[red]cycle"},
    "args": {"nms": False, "half": None},
}


def with_properties(properties: dict[str, str]) -> bytes:
    import onnx

    model = onnx.load_from_string(models.affine(batch=3))
    helper.set_model_props(model, properties)
    serialized: bytes = model.SerializeToString()
    return serialized


def test_the_onnx_files_metadata_stands_in_front_of_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "yolo.onnx"
    path.write_bytes(with_properties(YOLO))
    checked: list[bytes] = []
    engine = trtrun.build(path, check=checked.append).read_bytes()
    assert checked == [engine]  # what is checked is what is written
    info = identify(engine)
    assert info.metadata == IN_FRONT  # as Ultralytics' exporter writes it: JSON where the ONNX file has literals
    assert engine[info.offset :][:4] == b"vtrt"
    assert trtrun.OnnxRuntimeSession(path).metadata == IN_FRONT  # the same, whatever runs the file
    assert trtrun.build(path.read_bytes(), tmp_path / "b.engine").read_bytes()[: info.offset] == engine[: info.offset]
    bare = trtrun.build(path, tmp_path / "bare.engine", header=False).read_bytes()
    assert identify(bare).offset == 0
    assert build_plan(path)[:4] == b"vtrt"


@pytest.mark.parametrize("name", ["m.json", "m.textproto", "m"])
def test_the_files_name_does_not_say_how_it_is_read(name: str, tmp_path: Path) -> None:
    """onnx.load alone would read these as text; quantize and bundles have a path of their own to it."""
    path = tmp_path / name
    path.write_bytes(with_properties(YOLO))
    assert identify(trtrun.build(path, tmp_path / "m.engine").read_bytes()).metadata == IN_FRONT
    assert identify(trtrun.build(path, tmp_path / "m.engine", header=False).read_bytes()).metadata == {}


def test_metadata_that_no_task_reads_stays_in_the_onnx_file(tmp_path: Path) -> None:
    engine = trtrun.build(with_properties({"onnx.infer": "onnxruntime.quant"}), tmp_path / "m.engine")
    assert identify(engine.read_bytes()).offset == 0


def test_metadata_that_is_no_literal_stays_text_and_too_much_is_refused(tmp_path: Path) -> None:
    odd = {"names": "{0: 'a'", "imgsz": "[1e999, 4]", "stride": "{1, 2}"}
    assert identify(trtrun.build(with_properties(odd), tmp_path / "m.engine").read_bytes()).metadata == odd
    with pytest.raises(trtrun.PlanError, match=r"16,777,216 are read there at most.*--no-header"):
        trtrun.build(with_properties({"names": "x" * (17 << 20)}), tmp_path / "large.engine")
    assert not (tmp_path / "large.engine").exists()


def test_the_metadata_is_that_of_the_model_that_was_built(tmp_path: Path) -> None:
    path = tmp_path / "yolo.onnx"
    path.write_bytes(with_properties(YOLO))

    def replace(*_: object) -> None:
        path.write_bytes(with_properties({"task": "pose"}))

    assert identify(trtrun.build(path, progress=replace).read_bytes()).metadata == IN_FRONT
    assert trtrun.OnnxRuntimeSession(path).metadata == {"task": "pose"}


def test_external_data_is_found_beside_the_file(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "affine.onnx"
    onnx.save(
        onnx.load_from_string(models.affine(batch=3)),
        path,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    assert len(trtrun.build(path).read_bytes()) > 1000
    (tmp_path / "w.bin").unlink()
    with pytest.raises(trtrun.OnnxError, match=r"'W' is missing.*w\.bin"):
        trtrun.build(path)


def test_progress_is_reported() -> None:
    seen: list[tuple[str, int, int]] = []
    build_plan(models.affine(batch=3), progress=lambda *step: seen.append(step))
    assert seen
    assert all(0 <= done <= total for _, done, total in seen)


def test_an_interrupt_in_the_progress_callback_cancels_the_build() -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(models.convolution(), BuildOptions(profiles=parse_shapes(["x=1x3x8x8"])), progress=interrupt)


def test_ctrl_c_cancels_the_build() -> None:
    """Also where nobody watches its progress; TensorRT takes exceptions out of its callbacks and builds on."""
    code = f"""
import signal, sys, threading
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from tests import models
from trtrun.building import builder
class Built(Exception): pass
real = builder._monitor
def monitor(*args):
    signal.raise_signal(signal.SIGINT)
    return real(*args)
builder._monitor = monitor
try:
    builder.build_plan(models.affine(batch=3))
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("cancelled")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "cancelled\n"


def test_a_dynamic_batch_gets_a_profile_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    build_plan(models.affine())
    assert "built for batches 1 to 32, tuned for 8" in caplog.text


def test_other_dynamic_dimensions_need_a_shape_and_the_error_shows_how() -> None:
    with pytest.raises(trtrun.BuildError, match=r"--shape x=1x3x64x64:4x3x256x256:16x3x1024x1024\)") as refused:
        build_plan(models.convolution())
    (written,) = re.findall(r"profiles=(\(.*?\},\))", str(refused.value))
    assert BuildOptions.of(BuildOptions(profiles=eval(written, {"ShapeRange": ShapeRange})))


def test_a_batch_that_is_fixed_in_the_file_and_in_the_graph() -> None:
    profiles = parse_shapes(["x=1x12:4x12:8x12"])
    with pytest.raises(trtrun.BuildError, match=r"The file fixes the batch.*input_shapes=\{'x': \(-1, 12\)\}"):
        build_plan(models.affine(batch=3), BuildOptions(profiles=profiles))
    reshape = helper.make_node("Reshape", ["x", "sizes"], ["y"])
    graph = helper.make_graph(
        [reshape],
        "reshape",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([3, 3, 4]), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(trtrun.BuildError, match=r"--input-shape\) x=-1x12: a reshape inside the graph holds the sizes"):
        build_plan(model, BuildOptions(profiles=profiles, input_shapes={"x": (-1, 12)}))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (["y=1x3x8x8"], r"no input 'y'; it has \['x'\]\. Give profiles=.* \(--shape x=1x3x64x64:"),
        (["x=1x3x8x8", "z=1"], "no input 'z'"),
        (["x=1x3x8"], r"has shape \[-1, 3, -1, -1\]; the profile gives \[1, 3, 8\]\. Give as many dimensions"),
        (
            ["x=1x4x8x8"],
            r"the profile gives \[1, 4, 8, 8\]\. The file fixes dimension 1\. .*--input-shape x=-1x-1x-1x-1\)",
        ),
    ],
)
def test_profiles_that_do_not_fit_the_model(shapes: list[str], says: str) -> None:
    with pytest.raises(trtrun.BuildError, match=says):
        build_plan(models.convolution(), BuildOptions(profiles=parse_shapes(shapes)))


def test_what_cannot_be_refittable_is_told() -> None:
    with pytest.raises(trtrun.BuildError, match="could not build a refittable engine from this model") as caught:
        build_plan(models.affine(batch=3), BuildOptions(refittable=True))
    assert "Myelin" in "\n".join(caught.value.log)


def test_a_profile_that_leaves_out_a_dynamic_input() -> None:
    with pytest.raises(trtrun.BuildError, match=r"no shapes for the dynamic input\(s\) \['size'\]"):
        build_plan(models.several(), BuildOptions(profiles=parse_shapes(["images=1x4"])))


def test_specialization_needs_a_dynamic_batch() -> None:
    build_plan(models.affine(), BuildOptions(specialize=(1, 8)))
    with pytest.raises(trtrun.BuildError, match="no dynamic batch to specialize"):
        build_plan(models.affine(batch=3), BuildOptions(specialize=(1, 8)))


def test_input_shapes_are_declared_before_the_parser_makes_anything_of_the_old_ones() -> None:
    """The parser writes a Flatten of [3, 4, 2, 2] as a reshape to [3, 16]: with the batch declared later, TensorRT
    refused every other."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Flatten", ["r"], ["y"])],
        "flatten",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 16])],
        value_info=[helper.make_tensor_value_info("r", TensorProto.FLOAT, [3, 4, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    options = BuildOptions(input_shapes={"x": (-1, 4, 2, 2)}, profiles=parse_shapes(["x=1x4x2x2:8x4x2x2:32x4x2x2"]))
    assert build_plan(model, options)


def test_input_shapes_replace_those_of_the_file() -> None:
    options = BuildOptions(input_shapes={"x": (-1, 12)}, profiles=parse_shapes(["x=1x12:4x12:64x12"]))
    assert build_plan(models.affine(batch=3), options)
    with pytest.raises(trtrun.BuildError, match="no input 'q'"):
        build_plan(models.affine(), BuildOptions(input_shapes={"q": (1,)}))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (one_node("NoSuchOperator"), r"node 0 'culprit' \(NoSuchOperator\)"),
        (one_node("Foo", domain="com.example"), r"\(Foo\)"),
        (models.nonzero(), r"\(NonZero\)"),
        (models.nonzero(), r"has no implementation of operator NonZero\. .*--flavor"),
        (one_node("Det", domain=""), "has no implementation of operator Det"),
        (one_node("Foo", domain="com.example"), "has no implementation of operator Foo"),
        (one_node("Softmax", axis=7), "Check the model with onnx.checker"),
        (b"vtrt" + bytes(60), "is an engine, a TensorRT plan"),
        (b"hello", "cannot be parsed"),
        (b"", "is empty: 0 bytes"),
        (b"PK\x03\x04" + bytes(60), "a ZIP archive"),
        (models.affine()[:150], "cannot be parsed"),
    ],
)
def test_models_that_do_not_parse_name_the_node_and_why(model: bytes, says: str) -> None:
    with pytest.raises(trtrun.OnnxError, match=says):
        build_plan(model)


def test_parser_messages_are_attached() -> None:
    with pytest.raises(trtrun.OnnxError) as caught:
        build_plan(one_node("NoSuchOperator"))
    assert any("NoSuchOperator" in line for line in caught.value.log)


def test_a_network_that_parses_and_does_not_build_keeps_the_builders_words() -> None:
    # Shapes that do not fit each other pass the parser when they are dynamic.
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])],
        "mismatch",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["p", "q"] if n == "a" else ["r", "s"]) for n in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(trtrun.BuildError, match="could not build") as caught:
        build_plan(model, BuildOptions(profiles=parse_shapes(["a=2x3", "b=4x5"])))
    assert caught.value.log


def test_an_operator_that_parses_and_has_no_kernels_is_named() -> None:
    names = ["boxes", "scores", "count", "iou", "score"]
    constants = [np.int64([3]), np.float32([0.5]), np.float32([0.1])]
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", names, ["y"], name="nms")],
        "nms",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            for n, s in (("boxes", [1, 8, 4]), ("scores", [1, 2, 8]))
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["K", 3])],
        [numpy_helper.from_array(value, name) for name, value in zip(names[2:], constants, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(trtrun.BuildError, match="has no implementation of layer nms"):
        build_plan(model)


def test_the_last_version_for_compute_capability_9_is_named() -> None:
    with pytest.raises(trtrun.BuildError, match=r"unknown .* 'sm_90'.*1\.6\.1 is the last that runs on"):
        build_plan(models.affine(batch=1), BuildOptions(compute_capabilities=("sm_90",)))


@pytest.mark.parametrize("given", ["sm_89", "SM89", "sm89", "8.9", 8.9])
def test_a_compute_capability_may_be_spelled_as_it_is_shown(given: Any) -> None:
    options = BuildOptions(compute_capabilities=(given,))
    plain = BuildOptions(compute_capabilities=("sm_89",))
    assert options.key() == plain.key()
    model = models.affine(batch=1)
    assert len(build_plan(model, options)) == len(build_plan(model, plain))
    assert BuildOptions(compute_capabilities=("12.0", "sm_7_5", "current")).targets == ("sm_120", "sm_75", "current")
    with pytest.raises(trtrun.BuildError, match=r"a compute capability is None. Pass text, like 'sm_89'"):
        build_plan(model, BuildOptions(compute_capabilities=(None,)))  # type: ignore[arg-type]


def test_unknown_options() -> None:
    with pytest.raises(trtrun.BuildError, match=r"unknown compute capability 'sm_11'.*'sm_89'\]\.$"):
        build_plan(models.affine(batch=1), BuildOptions(compute_capabilities=("sm_11",)))
    with pytest.raises(trtrun.BuildError, match="tensorrt_lean"):
        build_plan(models.affine(batch=1), BuildOptions(flavor="tensorrt_lean"))
    with pytest.raises(trtrun.MissingPackageError, match=r"trtrun\[tensorrt\]"):
        build_plan(models.affine(batch=1), BuildOptions(flavor="tensorrt"))


ROWS = trtrun.ShapeRange((1, 12), (2, 12), (4, 12))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fp16": True}, r"are a dict\. Pass trtrun\.BuildOptions\(\*\*options\)"),
        ("fp16", "are a str"),
        (BuildOptions(profiles={"x": ROWS}), r"profiles is a dict\. Pass a tuple, also of one: profiles=\(\{…\},\)"),
        (BuildOptions(profiles=({"x": ((1, 12), (2, 12), (4, 12))},)), r'"images": trtrun\.ShapeRange\('),
        (BuildOptions(outputs="y"), r"outputs=\('y',\)"),
        (BuildOptions(specialize=8), r"specialize=\(8,\)"),
        (BuildOptions(input_shapes=(1, 12)), "from input name to shape"),
        (BuildOptions(input_shapes={"x": "1x12"}), r"'x' is given '1x12'\. Pass a tuple"),
        (BuildOptions(input_shapes={"x": 12}), r"'x' is given 12\. Pass a tuple"),
        (BuildOptions(input_shapes={"x": (None, 12)}), r"\[None, 12\]; each is a whole number from -1"),
        (BuildOptions(specialize=("8",)), "whole numbers, 1 or more"),
    ],
)
def test_options_of_another_type(options: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.affine())
    calls: list[Callable[[], object]] = [
        lambda: trtrun.build(path, options=options),
        lambda: build_plan(path, options),
        lambda: trtrun.load(path, build_options=options),
        lambda: trtrun.compare(path, path, build_options=options),
    ]
    for call in calls:
        with pytest.raises(trtrun.BuildError, match=says):
            call()


def test_every_option_is_described() -> None:
    assert BuildOptions.__doc__
    for field in dataclasses.fields(BuildOptions):
        assert f"\n        {field.name}: " in BuildOptions.__doc__


def test_options_reach_the_builder() -> None:
    options = BuildOptions(compute_capabilities=("sm_89",), optimization_level=1, workspace=1 << 20, tf32=False)
    assert build_plan(models.affine(batch=1), options)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(trtrun.ModelFileError, match="does not exist"):
        build_plan(tmp_path / "no.onnx")


def test_shape_texts() -> None:
    first, second = parse_shapes(["a=1x2:3x2:5x2", "b=7", "a=4x2"])
    assert first == {"a": ShapeRange((1, 2), (3, 2), (5, 2)), "b": ShapeRange((7,), (7,), (7,))}
    assert second == {"a": ShapeRange((4, 2), (4, 2), (4, 2))}
    assert parse_shapes(["input.1=1"])[0].keys() == {"input.1"}
    assert parse_shape("1x-1", "") == (1, -1)
    assert parse_shape("", "") == ()


@pytest.mark.parametrize("text", ["a", "a=1:2", "=1x2", "a=1xx2", "a=1x2:1x1:1x3", "a=1:2x2:3x3", "a=1,2"])
def test_shape_texts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(trtrun.BuildError):
        parse_shapes([text])


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("2GiB", 2 << 30), ("1.5 KiB", 1536), ("3MB", 3_000_000), ("5G", 5 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2Gx", "-1"])
def test_sizes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(trtrun.BuildError):
        parse_bytes(text)


def test_a_profile_that_takes_only_empty_requests_is_refused() -> None:
    empty, some = (0, 12), (4, 12)
    build_plan(models.affine(), BuildOptions(profiles=({"x": ShapeRange(empty, some, some)},)))
    for shapes in ((empty, empty, some), (empty, empty, empty)):
        with pytest.raises(trtrun.BuildError, match=r"'x' is given \[0, 12\]; each is a whole number from 1"):
            BuildOptions(profiles=({"x": ShapeRange(*shapes)},)).check()


def test_of_many_names_the_closest_are_said() -> None:
    model = models.chain()
    with pytest.raises(
        trtrun.BuildError, match=r"has no tensors named \['nope'\] to debug; of \d+ the closest"
    ) as error:
        build_plan(model, BuildOptions(debug_tensors=("nope",)))
    assert str(error.value).count("'") <= 2 * (1 + 5)
    assert closest(["conv12", "conv3"], ["conv2", "conv1", *(f"x{n}" for n in range(90))]).startswith(
        "of 92 the closest are ['conv2', 'conv1', "
    )


def test_the_key_tells_all_options_apart() -> None:
    changed = [
        BuildOptions(),
        BuildOptions(profiles=parse_shapes(["x=1"])),
        BuildOptions(specialize=(1,)),
        BuildOptions(input_shapes={"x": (1,)}),
        BuildOptions(flavor="tensorrt"),
        BuildOptions(compute_capabilities=("sm_89",)),
        BuildOptions(optimization_level=1),
        BuildOptions(workspace=1),
        BuildOptions(tf32=False),
        BuildOptions(plugins=("a.so",)),
        BuildOptions(refittable=True),
        BuildOptions(weight_streaming=True),
        BuildOptions(debug_tensors=("h",)),
        BuildOptions(detailed=True),
        BuildOptions(version_compatible=True),
        BuildOptions(hardware_compatible="ampere_plus"),
        BuildOptions(timing_cache="t"),
        BuildOptions(outputs=("h",)),
        BuildOptions(simplify=True),
        BuildOptions(fp16=True),
        BuildOptions(bf16=True),
        BuildOptions(keep_io=False),
        BuildOptions(keep_fp32=("Add",)),
    ]
    assert len({options.key() for options in changed}) == len(changed) == len(BuildOptions.__dataclass_fields__) + 1


def test_portable_engines_are_the_same_for_the_same_input() -> None:
    a, b = (np.frombuffer(build_plan(models.affine(batch=2)), np.uint8) for _ in range(2))
    assert a.size == b.size


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(version_compatible=True),
        BuildOptions(hardware_compatible="ampere_plus"),
        BuildOptions(timing_cache="timings"),
    ],
)
def test_what_only_full_tensorrt_has_is_refused_by_rtx(options: BuildOptions) -> None:
    with pytest.raises(trtrun.BuildError, match=r"TensorRT-RTX .* does not have this"):
        build_plan(models.static(), options)
