from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
import stat
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import trtrun
from tests import models
from trtrun import flavor as flavors
from trtrun.building import cache, content, files, graph
from trtrun.building.cache import cache_dir, cached_engine, cached_plan, write_atomic
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.plan import identify, identify_file


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
    path = tmp_path / "m.onnx"
    weights = _external(path)
    first = cached_engine(path)
    data = bytearray(weights.read_bytes())
    data[0] ^= 1
    weights.write_bytes(data)
    assert cached_engine(path) != first


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no checksum"])
def test_a_damaged_entry_is_rebuilt_and_it_is_said(model: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = cached_engine(model)
    good = path.read_bytes()
    time.sleep(0.05)  # more than a tick of the file system's clock
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


def _no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_read", lambda path: pytest.fail(f"{path} was read"))


def _external(path: Path) -> Path:
    proto = onnx.load_from_string(models.affine(batch=3))
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path.with_name("w.bin")


@pytest.mark.parametrize("external", [False, True])
def test_an_unchanged_model_is_not_read_again(model: Path, external: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if external:
        _external(model)
    monkeypatch.setattr(files, "TICK", 0)
    first = cached_engine(model)
    _no_reading(monkeypatch)
    assert cached_engine(model) == first
    monkeypatch.chdir(model.parent)
    assert cached_engine(model.name) == first


def test_a_second_load_takes_next_to_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TICK", 0)
    model.write_bytes(models.wide())
    options = BuildOptions(profiles=parse_shapes(["x=1x64x8x8"]))
    laps = []
    for _ in range(6):
        start = time.perf_counter()
        cached_plan(model, options)
        laps.append(time.perf_counter() - start)
    assert min(laps[1:]) < 0.02 * laps[0]


def test_a_model_changed_within_a_tick_of_being_hashed_is_hashed_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_engine(model)
    _no_reading(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="was read"):
        cached_engine(model)


@pytest.mark.parametrize("changed", ["model", "external data", "external data is gone"])
def test_any_write_is_noticed(model: Path, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that leaves the size, and the time of the last change set back to what it was."""
    weights = _external(model)
    monkeypatch.setattr(files, "TICK", 0)
    first = cached_engine(model)
    time.sleep(0.05)
    file = model if changed == "model" else weights
    if changed == "external data is gone":
        file.unlink()
        with pytest.raises(trtrun.OnnxError, match="missing"):
            cached_engine(model)
        return
    times, data = file.stat(), bytearray(file.read_bytes())
    position = data.rindex(b"test") if file == model else 0  # the graph's name
    data[position] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_mtime_ns == times.st_mtime_ns
    assert cached_engine(model) != first


def test_a_note_is_of_the_file_that_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``link/..`` is the folder above what the link leads to, not the one that holds the link."""
    monkeypatch.setattr(files, "TICK", 0)
    for name, batch in (("here", 3), ("there", 4)):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "m.onnx").write_bytes(models.affine(batch=batch))
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "sub")
    found = [
        content.content_of(f"{tmp_path}/{path}", tmp_path / "notes").sha256
        for path in ("here/link/../m.onnx", "here/m.onnx", "there/m.onnx", "here/m.onnx")
    ]
    assert found[0] == found[2] != found[1] == found[3]
    (tmp_path / "m.onnx").symlink_to(tmp_path / "here" / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert content.content_of("m.onnx", tmp_path / "notes").sha256 == found[1]
    assert len(list((tmp_path / "notes").iterdir())) == 3


def test_external_data_is_hashed_with_names_and_lengths(tmp_path: Path) -> None:
    proto = onnx.load_from_string(models._model(
        [helper.make_node("Add", ["x", "a"], ["z"]), helper.make_node("Mul", ["z", "b"], ["y"])],
        [models.value("x", [2])], [models.value("y", [2])],
        {"a": np.float32([1, 2]), "b": np.float32([4, 5])},
    ))  # fmt: skip
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{tensor.name}.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    found = set()
    for a, b in (([1, 2, 3], [4, 5, 6]), ([1, 2], [3, 4, 5, 6])):  # the same bytes one after the other
        np.float32(a).tofile(tmp_path / "a.bin")
        np.float32(b).tofile(tmp_path / "b.bin")
        found.add(content.content_of(tmp_path / "m.onnx", tmp_path / "notes").sha256)
    assert len(found) == 2


def test_what_is_written_through_a_map_is_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is dirty already changes no times, before it was written back."""
    with open(model, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:

        def times_after_a_write(byte: bytes) -> list[int]:
            time.sleep(0.05)  # more than a tick of the file system's clock
            position = mapped.rfind(b"test")
            mapped[position + 3 : position + 4] = byte
            return files.file_state(model)[3:]

        first = times_after_a_write(b"t")
        os.fsync(file.fileno())
        if times_after_a_write(b"t") == first:
            pytest.skip("this file system notes no times of writes through maps")
        monkeypatch.setattr(files, "TICK", 0)
        before = content.content_of(model, cache_dir())
        assert before.settled
        assert content._remembered(next(cache_dir().glob("*.json")), str(model)) == before
        times_after_a_write(b"T")
        assert content.content_of(model, cache_dir()).sha256 != before.sha256


@pytest.mark.parametrize("times", [1, 5])
def test_a_model_that_changes_while_it_is_built_poisons_no_entry(
    model: Path, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, before, left = cache.build_plan, model.read_bytes(), [*range(times)]

    def changing(*args: object, **options: object) -> bytes:
        if left:
            model.write_bytes(models.affine(batch=100 + left.pop()))
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "build_plan", changing)
    if times > 3:
        with pytest.raises(trtrun.ModelFileError, match="changed during each of 3 builds"):
            cached_engine(model)
        assert not cache.entries()
        return
    changed = cached_engine(model)
    assert "it is built again" in caplog.text
    monkeypatch.setattr(cache, "build_plan", real)
    model.write_bytes(before)
    assert cached_engine(model) != changed
    assert len(cache.entries()) == 2


def test_a_model_that_is_written_while_it_is_hashed_is_hashed_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = content.check_model, [1]

    def changing(path: str) -> list[Path]:
        found = real(path)
        if left:
            left.pop()
            time.sleep(0.05)
            model.write_bytes(models.affine(batch=9))
        return found

    monkeypatch.setattr(content, "check_model", changing)
    expected = hashlib.sha256(models.affine(batch=9)).hexdigest()
    assert content.content_of(model, cache_dir()).sha256 == expected
    left.extend([1] * 5)
    with pytest.raises(trtrun.ModelFileError, match="changed while it is read"):
        content.content_of(model, cache_dir())


def test_a_cache_that_cannot_be_written_is_said_and_the_engine_is_built(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRTRUN_CACHE_DIR", str(model / "inside a file"))
    path, plan = cached_plan(model)
    assert identify(plan).family == "tensorrt_rtx"
    assert not path.exists()
    assert "the engine is not kept: the cache" in caplog.text
    with pytest.raises(trtrun.ModelFileError, match="could not be kept"):
        cached_engine(model)


@pytest.mark.parametrize("facts", ["[]", "3", '{"model": 5, "options": [3]}', '"text"'])
def test_facts_of_a_wrong_kind_break_nothing(model: Path, facts: str) -> None:
    path = cached_engine(model)
    path.with_suffix(".json").write_text(facts)
    assert len(cache.entries()) == 1
    assert not cache.prune()
    assert cached_engine(model) == path
    path.with_suffix(".json").write_text(facts)
    assert len(cache.clear()) == 1


def test_a_copied_cache_is_checked_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cached_engine(model)
    copied = engine.read_bytes()
    engine.unlink()
    engine.write_bytes(copied)
    monkeypatch.setattr(cache, "build_plan", None)  # building again would fail
    monkeypatch.setattr(files, "SETTLED", 0)
    assert cached_engine(model) == engine
    monkeypatch.setattr(cache.zlib, "crc32", lambda *_: pytest.fail("checked again"))
    assert cached_engine(model) == engine


def test_bytes_have_an_entry_too(model: Path) -> None:
    path, plan = cached_plan(model.read_bytes())
    assert plan[:] == path.read_bytes()
    assert cached_engine(model) == path
    assert cache.entries()[0].model == "bytes"


def test_what_is_noted_of_models_goes_with_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TICK", 0)
    other = model.with_name("other.onnx")
    other.write_bytes(model.read_bytes())
    cached_engine(model), cached_engine(other)
    notes = cache_dir() / "models"
    (notes / "damaged.json").write_text("[]")
    other.unlink()
    cache.prune()
    assert len(list(notes.iterdir())) == 1
    cache.clear()
    assert not list(notes.iterdir())


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
    workers = [context.Process(target=_build, args=(str(model), str(tmp_path / "shared"), results)) for _ in range(8)]
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
    for unwritable in (path / "in a file", path.parent):
        with pytest.raises(trtrun.ModelFileError, match=f"^'{unwritable}' cannot be written: "):
            write_atomic(unwritable, b"three")
    assert list(tmp_path.iterdir()) == [path.parent]


def test_the_revision_is_raised_with_each_change_to_what_graphs_are_made_into() -> None:
    """If this fails: raise REVISION where the same model and options give another graph; then pin the sources again."""
    sources = [Path(graph.__file__).with_name(f"{name}.py").read_bytes() for name in ("graph", "precision", "rewrites")]
    found = hashlib.sha256(b"".join(sources)).hexdigest()[:16]
    assert (graph.REVISION, found) == (8, "1f3ed3f958973b93")


def test_plugins_bytes_and_the_versions_of_what_changes_graphs_are_part_of_the_key(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flavor = flavors.for_building(None)
    plugin = model.with_name("plugin.so")
    plugin.write_bytes(b"one")
    with_plugin = BuildOptions(plugins=(plugin,))
    options = [BuildOptions(), with_plugin, BuildOptions(simplify=True), BuildOptions(fp16=True)]
    before = [cache._digest(content.content_of(model, cache._notes()), each, flavor) for each in options]
    plugin.write_bytes(b"two")
    real = cache.metadata.version
    monkeypatch.setattr(cache.metadata, "version", lambda package: real(package) + ".post1")
    after = [cache._digest(content.content_of(model, cache._notes()), each, flavor) for each in options]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False, False]
    plugin.unlink()
    with pytest.raises(trtrun.PluginError, match=r"plugin\.so"):
        cached_engine(model, with_plugin)


def test_another_revision_of_the_changes_to_graphs_is_another_entry(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_engine(model)
    monkeypatch.setattr(graph, "REVISION", graph.REVISION + 1)
    assert cached_engine(model) != first


def test_a_cached_engine_has_the_models_metadata_in_front(model: Path) -> None:
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, {"task": "detect", "names": "{0: 'cat'}"})
    onnx.save(proto, model)
    for _ in ("built", "found"):
        _, plan = cache.cached_plan(model)
        assert identify(plan).metadata == {"task": "detect", "names": {"0": "cat"}}


def test_metadata_that_no_header_takes_is_left_out_aloud(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, {"names": "x" * (17 << 20)})
    onnx.save(proto, model)
    _, plan = cache.cached_plan(model)
    assert not identify(plan).metadata
    assert "its metadata is left out of the engine" in caplog.text


def test_an_entry_of_another_layout_is_not_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_engine(model)
    monkeypatch.setattr(cache, "_LAYOUT", cache._LAYOUT + 1)
    assert cached_engine(model) != first
