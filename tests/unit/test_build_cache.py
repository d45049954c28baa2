from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from tests import models
from trtrun.building import cache, graph
from trtrun.building.cache import cache_dir, cached_engine, write_atomic
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.plan import identify_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "affine.onnx"
    path.write_bytes(models.affine(batch=3))
    return path


def test_built_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_engine(model)
    assert first.is_relative_to(cache_dir())
    assert identify_file(first).family == "tensorrt_rtx"
    monkeypatch.setattr(cache, "build_plan", None)  # building again would fail
    assert cached_engine(model) == first


def test_content_and_options_are_the_key(model: Path) -> None:
    first = cached_engine(model)
    moved = model.with_name("other.onnx")
    moved.write_bytes(model.read_bytes())
    assert cached_engine(moved) == first
    assert cached_engine(model, BuildOptions(tf32=False)) != first
    model.write_bytes(models.affine(batch=4))
    assert cached_engine(model) != first


def test_external_data_is_part_of_the_key(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    onnx.save(
        onnx.load_from_string(models.affine(batch=3)),
        path,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    first = cached_engine(path)
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    assert cached_engine(path) != first


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no checksum"])
def test_a_damaged_entry_is_rebuilt_and_it_is_said(model: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = cached_engine(model)
    good = path.read_bytes()
    if damage == "no checksum":
        path.with_suffix(".json").unlink()
    else:
        flipped = bytes([good[0] ^ 1]) + good[1:]
        path.write_bytes({"truncate": good[:-10], "flip": flipped, "empty": b""}[damage])
    assert cached_engine(model) == path
    assert identify_file(path).size == len(path.read_bytes())
    assert "damaged; it is built again" in caplog.text


def test_a_failed_build_leaves_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "conv.onnx"
    path.write_bytes(models.convolution())
    with pytest.raises(Exception, match="--shape"):
        cached_engine(path)
    assert not list((cache_dir() / "engines").glob("*.engine"))
    assert cached_engine(path, BuildOptions(profiles=parse_shapes(["x=1x3x8x8"]))).exists()


def _build(model: str, folder: str, results: multiprocessing.Queue) -> None:
    os.environ["TRTRUN_CACHE_DIR"] = folder
    built = []
    real = cache.build_plan

    def counted(*args: object, **options: object) -> bytes:
        built.append(1)
        return real(*args, **options)  # type: ignore[arg-type]

    cache.build_plan = counted
    results.put((len(cached_engine(model).read_bytes()), len(built)))


def test_processes_that_ask_at_once_build_once(model: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_build, args=(str(model), str(tmp_path / "shared"), results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len({size for size, _ in found}) == 1
    assert sum(built for _, built in found) == 1


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTRUN_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("TRTRUN_CACHE_DIR")
    assert cache_dir() == Path("/b/trtrun")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "trtrun"


def test_atomic_writes_replace_whole_files_and_respect_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with pytest.raises(TypeError):
        write_atomic(path, "text")  # type: ignore[arg-type]
    assert list(path.parent.iterdir()) == [path]


def test_another_revision_of_the_changes_to_graphs_is_another_entry(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_engine(model)
    monkeypatch.setattr(graph, "REVISION", graph.REVISION + 1)
    assert cached_engine(model) != first
