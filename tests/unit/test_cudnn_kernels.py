"""What the runtime cache tells of cuDNN's kernels: entries made here in the form that TensorRT-RTX 1.6.1 writes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from trtrun.cuda.cudnn_kernels import CudnnKernels

SCALARS = b"\x01\0\0\0\x40\0\0\0\x38\0\0\0"
POINTER, DESCRIPTOR = bytes(range(8)), bytes(range(64))
LAUNCH = [SCALARS, DESCRIPTOR, b"\7\0\0\0", POINTER]  # as the graph has it: no gaps


def entry(**changes: Any) -> dict[str, Any]:
    def tensor(name: str, dtype: str, dim: list[int], stride: list[int]) -> dict[str, Any]:
        return {"name": name, "dataType": f"CUDNN_DATA_{dtype}", "dim": dim, "stride": stride, "isByValue": False,
                "vectCount": 1} | changes.get("tensor", {})  # fmt: skip

    raw = SCALARS + bytes(4) + bytes(64) + b"\7\0\0\0" + bytes(4) + bytes(8)
    parameters = [
        {"value": 0},
        {"value": 16, "uid": 2, "update_as": "tma_desc"},
        {"value": 80},
        {"value": 88, "uid": 6, "update_as": "pointer"} | changes.get("parameter", {}),
    ]
    launch = {"offsets": parameters, "rawData": base64.b64encode(raw).decode()}
    kernel = {"kernelName": "cudnn_a", "kernelParams": launch}
    return {
        "cudnnVersion": 92500,
        "operationGraph": {
            "tensors": [
                tensor("2", "HALF", [1, 64, 56, 56], [200704, 1, 3584, 64]),
                tensor("6", "FLOAT", [2, 3], [5, 1]),  # rows lie apart
            ]
        },
        "engine": {"payload": {"kernels": [kernel] * changes.get("kernels", 1)}},
    }


def body(*entries: dict[str, Any]) -> bytes:
    texts = [json.dumps(one, separators=(",", ":")).encode() for one in entries]
    return b"ptrtb\0\xff" + b"".join(b"Sl\0" + text for text in texts) + b"}"


def test_the_bytes_of_each_tensor() -> None:
    found = CudnnKernels(body(entry())).sizes(b"cudnn_a", LAUNCH)
    assert found == (0, 2 * 200704, 0, 4 * (1 + 5 + 2))


@pytest.mark.parametrize(
    "launch",
    [
        LAUNCH[:3],
        [*LAUNCH, b"\0\0\0\0"],
        [SCALARS[:-1] + b"\1", *LAUNCH[1:]],
        [*LAUNCH[:2], b"\x08\0\0\0", POINTER],
    ],
)
def test_a_launch_of_other_parameters_is_unknown(launch: list[bytes]) -> None:
    assert CudnnKernels(body(entry())).sizes(b"cudnn_a", launch) is None


def test_sizes_that_are_not_known() -> None:
    """The launch is found all the same: to look for it again is of no use."""
    for other in (
        entry(tensor={"dataType": "CUDNN_DATA_INT8x32"}),
        entry(tensor={"vectCount": 4}),
        entry(tensor={"dim": [2, 3], "stride": [-1, 1]}),
        entry(tensor={"dim": [2, 0], "stride": [1, 1]}),
        entry(tensor={"isByValue": True}),
        entry(kernels=2),  # which share memory
    ):
        assert CudnnKernels(body(other)).sizes(b"cudnn_a", LAUNCH) == (0, None, 0, None)
    missing = entry()
    missing["operationGraph"]["tensors"].pop()  # the workspace is no tensor
    for other in (missing, entry(parameter={"update_as": "workspace"})):  # whose uid is that of a tensor
        assert CudnnKernels(body(other)).sizes(b"cudnn_a", LAUNCH) == (0, 2 * 200704, 0, None)
    assert CudnnKernels(body(missing, entry())).sizes(b"cudnn_a", LAUNCH) == (0, 2 * 200704, 0, None)


def test_unknown_names_and_what_is_no_such_entry() -> None:
    kernels = CudnnKernels(body(entry()))
    assert kernels.sizes(b"cudnn_b", LAUNCH) is None
    for other in (
        entry(tensor={"dim": [2, 3]}),  # of more strides
        entry(parameter={"value": "88"}),
        entry(parameter={"value": -8}),
        entry(parameter={"value": 97}),  # beyond the values
        entry(parameter={"value": True}),
        {"cudnnVersion": 1},
        {"cudnnVersion": 1, "operationGraph": [], "engine": {"payload": None}},
    ):
        assert CudnnKernels(body(other)).sizes(b"cudnn_a", LAUNCH) is None
    for damaged in (b"", body(entry())[:-200], b'{"cudnnVersion":', b'{"cudnnVersion":' + b"[" * 100_000):
        assert CudnnKernels(damaged).sizes(b"cudnn_a", LAUNCH) is None


def test_kernels_of_any_shape_are_named() -> None:
    kept = {"key": {"bpa_a": 128}, "value": [{"kernelName": "cudnn_b", "kernelParams": {}, "cubin": ""}]}
    graph = {"isDynamicShapeEnabled": True}
    kernels = CudnnKernels(body({"cudnnVersion": 1, "operationGraph": graph, "kernel_cache": [kept]}, entry()))
    assert kernels.of_any_shape == {b"cudnn_b"}
    assert kernels.sizes(b"cudnn_b", LAUNCH) is None
    assert kernels.sizes(b"cudnn_a", LAUNCH) is not None
    assert CudnnKernels(body(entry() | {"kernel_cache": None})).sizes(b"cudnn_a", LAUNCH) is not None
    assert not CudnnKernels(body({"cudnnVersion": 1, "kernel_cache": [{"value": [{}]}, kept]})).of_any_shape


@pytest.mark.parametrize(("dtype", "item"), [("BFLOAT16", 2), ("FLOAT", 4), ("FP8_E4M3", 1), ("INT64", 8)])
def test_items_of_each_dtype(dtype: str, item: int) -> None:
    kernels = CudnnKernels(body(entry(tensor={"dataType": f"CUDNN_DATA_{dtype}"})))
    assert kernels.sizes(b"cudnn_a", LAUNCH) == (0, item * 200704, 0, item * 8)


def test_one_odd_entry_leaves_the_others() -> None:
    kernels = CudnnKernels(body(entry(parameter={"value": None}), entry()))
    assert kernels.sizes(b"cudnn_a", LAUNCH) is not None


def test_of_several_that_fit_the_largest_counts() -> None:
    kernels = CudnnKernels(body(entry(), entry(tensor={"dim": [10, 20], "stride": [20, 1]})))
    assert kernels.sizes(b"cudnn_a", LAUNCH) == (0, 2 * 200704, 0, 4 * 200)
