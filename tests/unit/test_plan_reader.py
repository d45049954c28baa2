from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import models
from trtrun import plan as plan_module
from trtrun import plan_reader
from trtrun.building.cache import cached_plan
from trtrun.errors import ModelFileError
from trtrun.plan import ModelFile, pieces
from trtrun.plan_reader import PlanReader

BODY = bytes(range(256)) * 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    path.write_bytes(BODY)
    return path


@pytest.fixture(params=["file", "memory"])
def data(request: pytest.FixtureRequest, file: Path) -> ModelFile | memoryview:
    return ModelFile(file) if request.param == "file" else memoryview(BODY)


def as_the_bindings_do(reader: PlanReader, count: int) -> bytes:
    """Read until there is all that TensorRT asked for, or nothing more comes."""
    got = b""
    while len(got) < count and (part := reader.read(count - len(got))):
        got += part
    return got


@given(start=st.none() | st.integers(-2000, 2000), stop=st.none() | st.integers(-2000, 2000))
def test_slices_of_a_file_are_those_of_its_bytes(start: int | None, stop: int | None) -> None:
    path = Path(__file__)
    expected = path.read_bytes()[start:stop]
    assert ModelFile(path)[start:stop] == expected


def test_pieces_are_all_that_stands_there(data: ModelFile | memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PIECE", 100)
    found = list(pieces(data, 30))
    assert b"".join(found) == BODY[30:]
    assert {len(piece) for piece in found} == {100, (len(BODY) - 30) % 100}


def test_reading_is_in_parts_and_in_order(data: ModelFile | memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_reader, "PIECE", 100)
    reader = PlanReader(data, 10)
    assert as_the_bindings_do(reader, 32) == BODY[10:42]
    assert len(reader.read(1000)) == 100
    assert as_the_bindings_do(reader, 500) == BODY[142:642]
    assert as_the_bindings_do(reader, 10**12) == BODY[642:]
    assert reader.read(1) == b""


def test_seeking_counts_from_the_plan_and_not_from_its_file(data: ModelFile | memoryview) -> None:
    reader = PlanReader(data, 10)
    for offset, where, position in (
        (80, "SET", 90),
        (5, "CUR", 96),
        (-1, "CUR", 96),
        (-4, "END", 1020),
        (0, "SET", 10),
    ):
        assert reader.seek(offset, where)
        assert reader.read(1) == BODY[position : position + 1]
    assert reader.seek(7, "END")  # plans are padded in places
    assert reader.read(1) == b""
    assert not reader.seek(-1, "SET")
    assert not reader.seek(-1015, "END")


def test_a_file_that_is_cut_short_while_it_is_read(file: Path) -> None:
    data = ModelFile(file)
    os.truncate(file, 600)
    assert data[590:600] == BODY[590:600]
    with pytest.raises(ModelFileError, match=r"cut short.*1,024 bytes, and ends after 600"):
        data[590:700]
    with pytest.raises(ModelFileError, match="cut short"):
        list(pieces(data))


class Poisoned(ModelFile):
    """A file whose second half cannot be read."""

    def __init__(self, path: Path, error: BaseException) -> None:
        super().__init__(path)
        self.raised = error

    def __getitem__(self, part: slice) -> bytes:
        if part.stop > len(self) // 2:
            raise self.raised
        return super().__getitem__(part)


@pytest.mark.parametrize("error", [ModelFileError("poison"), MemoryError(), KeyboardInterrupt()])
def test_nothing_is_raised_into_tensorrt(file: Path, error: BaseException) -> None:
    reader = PlanReader(Poisoned(file, error), 0)
    assert as_the_bindings_do(reader, 500) == BODY[:500]
    assert reader.read(500) == b""
    assert reader.seek(0, "SET")
    assert reader.read(5) == b""  # what was missed stays missed
    assert reader._error is error


def test_a_file_is_closed_with_its_last_reference(file: Path) -> None:
    data = ModelFile(file)
    number, mapped = data.fileno(), data.mapped()
    del data
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert mapped == BODY


def test_a_cached_plan_outlives_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTRUN_CACHE_DIR", str(tmp_path / "cache"))
    cached_plan(models.affine(batch=3))
    path, plan = cached_plan(models.affine(batch=3))
    whole = path.read_bytes()
    path.unlink()
    assert b"".join(pieces(plan)) == whole
