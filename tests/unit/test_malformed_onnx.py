from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import trtrun
from tests import models
from tests.unit import malformed
from trtrun.building.cache import cache_dir, cached_engine
from trtrun.building.onnx_check import check_model

# What could crash TensorRT runs in a process of its own, which says before each file that it begins with it.
CHILD = """
import json, sys, trtrun
for path in json.load(sys.stdin):
    print(json.dumps({"begins": path}), flush=True)
    try:
        trtrun.build(path)
        found = "was built"
    except trtrun.TrtrunError as error:
        found = type(error).__name__
        assert str(error).strip()
    except BaseException as error:
        found = "an error without a type: " + repr(error)[:300]
    print(json.dumps({"path": path, "found": found}), flush=True)
with open("/proc/self/status") as status:  # getrusage's peak may be that of the process that started this one
    print(json.dumps({"peak": next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))}))
"""


def build_all(paths: list[Path]) -> tuple[dict[str, str], int]:
    """What became of each file, and the largest peak memory in KiB; after a crash the rest runs in a new process."""
    found: dict[str, str] = {}
    peak, left = 0, [str(path) for path in paths]
    while left:
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=json.dumps(left),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        begun = None
        for row in map(json.loads, done.stdout.splitlines()):
            begun = row.get("begins", begun)
            peak = max(peak, row.get("peak", 0))
            if "path" in row:
                found[Path(row["path"]).stem] = row["found"]
        if done.returncode == 0:
            break
        assert begun is not None, done.stderr
        found[Path(begun).stem] = f"crashed: {done.returncode}"
        left = left[left.index(begun) + 1 :]
    return found, peak


def test_every_malformed_file_is_a_typed_error_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    paths = malformed.write(folder)
    assert len(paths) >= 100
    before = sorted(folder.iterdir())
    found, peak = build_all(paths)
    assert set(found) == {path.stem for path in paths}
    assert {name: what for name, what in found.items() if what not in ("OnnxError", "BuildError")} == {}
    assert sorted(folder.iterdir()) == before
    assert peak < 1 << 20  # no claim of gigabytes is believed


def test_files_are_the_same_on_every_run() -> None:
    assert malformed.files() == malformed.files()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("node_without_outputs", r"node '' \(Add\) has no outputs"),
        ("function_that_calls_itself", r"functions \['Self'\] call themselves"),
        ("functions_that_call_each_other", r"functions \['Ping', 'Pong'\] call themselves"),
        ("too_few_inputs", r"\(Add\) has 1 inputs, where 2 to 2"),
        ("pads_of_text", "attribute 'pads' of node '' .* is STRING, where INTS"),
        ("pads_of_the_wrong_length", "half of pads 1.5, the weight's spatial rank 2"),
        ("unknown_domain", "domain 'com.example'"),
        ("negative_dimension_of_input", "input 'x' has the dimension -7"),
        ("duplicate_graph_outputs", "two outputs of the graph are named 'y'"),
        ("external_data_missing", r"'W' is missing: .*gone\.bin"),
        ("external_data_too_short", "should be 240 bytes, and the file .* of 100 bytes"),
        ("external_data_at_a_negative_offset", "240 at -1"),
        ("external_data_at_an_absolute_path", "not a path inside the model's folder"),
        ("truncated_at_100", "cannot be parsed: it is not an ONNX model, or not all of one"),
    ],
)
def test_what_is_wrong_is_said_before_tensorrt_sees_it(tmp_path: Path, name: str, says: str) -> None:
    path = next(path for path in malformed.write(tmp_path / "models") if path.stem == name)
    with pytest.raises(trtrun.OnnxError, match=says):
        check_model(path)
    with pytest.raises(trtrun.OnnxError, match=says):
        cached_engine(path)
    assert not list(cache_dir().rglob("*.*"))


def test_whole_models_pass(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    for model in (models.affine(), models.convolution(), models.several(), models.topk(), models.nonzero()):
        assert check_model(model) == []
    path = tmp_path / "external.onnx"
    proto = onnx.load_from_string(models.affine(batch=3))
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert check_model(path) == [tmp_path / "w.bin"]
    plugin = onnx.load_from_string(models.affine())
    plugin.graph.node[2].op_type = "EfficientNMS_TRT"  # the parser finds a plugin by this name, in any domain
    assert check_model(plugin.SerializeToString()) == []
    plugin.graph.node[2].domain = "TRT"
    assert check_model(plugin.SerializeToString()) == []
    function = onnx.load_from_string(models.affine())
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    relu, twice = ([helper.make_node("Relu", ["a"], ["c"])], [helper.make_node("One", ["a"], ["c"], domain="local")])
    function.functions.append(helper.make_function("local", "One", ["a"], ["c"], relu, opsets))
    function.functions.append(helper.make_function("local", "Two", ["a"], ["c"], twice, opsets))
    function.graph.node[2].CopyFrom(helper.make_node("Two", ["s"], ["y"], domain="local"))
    assert check_model(function.SerializeToString()) == []
