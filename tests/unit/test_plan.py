from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import models
from trtrun.building.builder import build_plan
from trtrun.errors import ModelFileError, PlanError
from trtrun.plan import ModelFile, identify, identify_file, is_plan


@pytest.fixture(scope="module")
def plan() -> bytes:
    return build_plan(models.affine(batch=3))


def with_metadata(plan: bytes, metadata: object) -> bytes:
    text = json.dumps(metadata).encode()
    return struct.pack("<I", len(text)) + text + plan


def full_plan(version: tuple[int, int, int, int] = (10, 13, 0, 35)) -> bytes:
    """The first bytes as the full builder writes them."""
    return b"ftrt" + bytes(20) + bytes(version) + bytes(100)


def test_real_rtx_plan(plan: bytes) -> None:
    info = identify(plan)
    assert info.family == "tensorrt_rtx"
    assert info.version == (1, 6, 1, 120)
    assert info.size == len(plan)
    assert info.offset == 0
    assert str(info) == f"TensorRT-RTX 1.6.1.120 plan, {len(plan):,} bytes"


def test_full_plan() -> None:
    info = identify(full_plan())
    assert info.family == "tensorrt"
    assert info.version_text == "10.13.0.35"


def test_exporter_metadata_in_front(plan: bytes, tmp_path: Path) -> None:
    metadata = {"names": {"0": "person"}, "task": "detect", "imgsz": [640, 640], "stride": 32, "batch": 1}
    data = with_metadata(plan, metadata)
    path = tmp_path / "yolo.engine"
    path.write_bytes(data)
    for info in (identify(data), identify_file(path)):
        assert info.metadata == metadata
        assert data[info.offset :] == plan
        assert info.size == len(plan)
    assert is_plan(data[:16])
    assert is_plan(plan[:16])


def test_truncation_is_noticed_at_every_length_of_the_header(plan: bytes) -> None:
    for length in [*range(4, 40), 1000, len(plan) - 1]:
        with pytest.raises(PlanError, match="truncated"):
            identify(plan[:length])


def test_truncated_metadata(plan: bytes) -> None:
    data = with_metadata(plan, {"names": "x" * 100})
    with pytest.raises(PlanError, match="truncated inside its metadata"):
        identify(data[:60])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(60), "ZIP.*ONNX"),
        (models.affine(), "looks like an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<html><body>Not found</body></html>" + bytes(40), "text"),
        (bytes(range(200, 255)), "not with the tag"),
        (b"\x20\x00\x00\x00{not json at all, but thirty-two}" + bytes(64), "not JSON"),
        (struct.pack("<I", 100_000) + b'{"a":' + b"[" * 99_995 + bytes(64), "not JSON"),
        (b"\x02\x00\x00\x00{}" + b"nope" + bytes(64), "no TensorRT plan behind it"),
    ],
)
def test_what_is_no_plan_is_called_what_it_is(data: bytes, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        identify(data)


@pytest.mark.parametrize("opened", [identify_file, ModelFile])
def test_missing_file(opened: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="it does not exist"):
        opened(tmp_path / "no.engine")
    with pytest.raises(ModelFileError, match="it is a directory"):
        opened(tmp_path)


def behind_a_length(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


@given(
    st.binary(max_size=200)
    | st.binary(max_size=100).map(lambda tail: b"vtrt" + tail)
    | st.tuples(st.binary(max_size=50).map(lambda text: behind_a_length(b"{" + text)), st.binary(max_size=60)).map(
        b"".join
    )
    | st.tuples(st.just(behind_a_length(b'{"task": "detect"}') + b"vtrt"), st.binary(max_size=60)).map(b"".join)
)
def test_any_bytes_give_a_plan_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(PlanError):
        identify(data)
