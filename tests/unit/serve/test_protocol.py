"""Tensors there and back, and bodies that follow no protocol."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtrun.errors import DtypeError, InputError, InputNameError, ShapeError
from trtrun.serve import protocol

DTYPES = [
    np.dtype(name) for name in ("bool", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64")
]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))


def values(dtype: np.dtype[Any], *shape: int) -> np.ndarray:
    rng = np.random.default_rng()
    return rng.integers(0, 2 if dtype == np.bool_ else 100, shape).astype(dtype)


def body(header: Any, *binary: bytes) -> tuple[bytes, int | None]:
    text = json.dumps(header).encode()
    return text + b"".join(binary), len(text) if binary else None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_tensors_there_and_back(dtype: np.dtype[Any], binary: bool, shape: tuple[int, ...]) -> None:
    array = values(dtype, *shape)
    tensor: dict[str, Any] = {"name": "x", "datatype": protocol.datatype(dtype), "shape": list(shape)}
    if binary:
        tensor["parameters"] = {"binary_data_size": array.nbytes}
        request = protocol.parse(*body({"inputs": [tensor]}, array.tobytes() or b""))
    else:
        data = array.astype(np.float32) if dtype.kind == "V" else array
        request = protocol.parse(*body({"inputs": [{**tensor, "data": data.tolist() if shape else [data.item()]}]}))
    assert request.inputs["x"].dtype == dtype
    assert request.inputs["x"].shape == shape
    np.testing.assert_array_equal(request.inputs["x"], array)
    wanted = protocol.InferRequest({}, binary=binary, id="7")
    pieces, length = protocol.render("m", "1", wanted, {"y": array})
    response = json.loads(pieces[0])
    assert (response["id"], response["model_name"], response["model_version"]) == ("7", "m", "1")
    (output,) = response["outputs"]
    assert (output["datatype"], output["shape"]) == (protocol.datatype(dtype), list(shape))
    if binary:
        assert length == len(pieces[0])
        assert bytes(pieces[1]) == array.tobytes()
    else:
        assert length is None
        np.testing.assert_array_equal(np.array(output["data"], np.float64).reshape(shape), array.astype(np.float64))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **changes}


@pytest.mark.parametrize(
    ("header", "error", "said"),
    [
        ([], InputError, "JSON object"),
        ({}, InputError, "inputs must be a JSON array"),
        ({"inputs": [3]}, InputError, "an input must be"),
        ({"inputs": [tensor(name=None)]}, InputNameError, "no name"),
        ({"inputs": [tensor(), tensor()]}, InputNameError, "twice"),
        ({"inputs": [tensor()], "outputs": [{"name": "y"}] * 2}, InputNameError, "twice"),
        ({"inputs": [tensor(datatype="BYTES")]}, DtypeError, "no engine takes strings"),
        ({"inputs": [tensor(datatype="FP8")]}, DtypeError, "must be one of"),
        ({"inputs": [tensor(shape=[3])]}, ShapeError, "needs 3 numbers, got 2"),
        ({"inputs": [tensor(shape=[-1])]}, ShapeError, "no size"),
        ({"inputs": [tensor(shape=[True, 2])]}, ShapeError, "no size"),
        ({"inputs": [tensor(shape=[2**30, 2**30])]}, ShapeError, "no request holds"),
        ({"inputs": [tensor(shape="2")]}, ShapeError, "list"),
        ({"inputs": [tensor(data=["a", "b"])]}, DtypeError, "not all numbers"),
        ({"inputs": [tensor(data=[[1], [2, 3]])]}, DtypeError, "cannot be read"),
        ({"inputs": [tensor(datatype="INT32", data=[1.5, 2])]}, DtypeError, "numbers that INT32 does not"),
        ({"inputs": [tensor(datatype="UINT8", data=[300, 2])]}, DtypeError, "numbers that UINT8 does not"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 8})]}, InputError, "0 are left"),
        (
            {"inputs": [tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8})]},
            InputError,
            "no shared",
        ),
        ({"inputs": [tensor()], "id": 3}, InputError, "id must be text"),
        ({"inputs": [tensor()], "parameters": {"timeout": -1}}, InputError, "timeout"),
        ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, InputError, "true or false"),
        (
            {"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
            InputError,
            "top values",
        ),
    ],
)
def test_requests_that_are_none(header: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        protocol.parse(*body(header))


def test_binary_data_must_be_all_used_and_no_more() -> None:
    good = tensor(parameters={"binary_data_size": 8})
    data = np.float32([1, 2]).tobytes()
    assert protocol.parse(*body({"inputs": [good]}, data)).inputs["x"].tolist() == [1, 2]
    for text, length in (body({"inputs": [good]}, data + b"."), body({"inputs": [good]}, data[:4])):
        with pytest.raises(InputError):
            protocol.parse(text, length)
    with pytest.raises(InputError, match="Header-Content-Length"):
        protocol.parse(b"{}", 5)
    with pytest.raises(DtypeError, match="BOOL"):
        protocol.parse(*body({"inputs": [tensor(datatype="BOOL", parameters={"binary_data_size": 2})]}, b"\1\2"))
    with pytest.raises(InputError, match="NaN"):
        protocol.render("m", "1", protocol.InferRequest({}), {"y": np.float32([np.nan])})
    request = protocol.InferRequest({}, (protocol.RequestedOutput("z", False),))
    with pytest.raises(InputNameError, match="no output"):
        protocol.render("m", "1", request, {"y": np.zeros(2)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "datatype", "shape", "data", "inputs", "outputs", "parameters", "binary_data_size", "id"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.binary(max_size=20), st.integers(-3, 40) | st.none())
def test_whatever_comes_is_one_kind_of_error(header: Any, rest: bytes, length: int | None) -> None:
    for entry in (header, {"inputs": header}, {"inputs": [header]}, {"inputs": [tensor()], "outputs": header}):
        text = json.dumps(entry).encode()
        for given_length in (length, len(text)):
            with contextlib.suppress(InputError):
                protocol.parse(text + rest, given_length)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_json(data: bytes) -> None:
    with pytest.raises(InputError):
        protocol.parse(b"\xff" + data)
