from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun.building import cache
from trtrun.building.options import BuildOptions
from trtrun.cli import app
from trtrun.cli.cache import _size

cli = CliRunner()
HOUR = 3600.0


def store(name: str, size: int, used: float) -> Path:
    """An entry as cached_engine leaves it, used this many seconds ago."""
    path = cache.cache_dir() / "engines" / f"{name}.engine"
    cache.write_atomic(path, bytes(size))
    facts = {"crc32": 0, "model": f"/models/{name}.onnx", "built_by": "TensorRT-RTX 1.6.1", "options": "{}"}
    cache.write_atomic(path.with_suffix(".json"), json.dumps(facts).encode())
    for file in (path, path.with_suffix(".json")):
        os.utime(file, (time.time() - used,) * 2)
    return path


def names() -> list[str]:
    return [entry.name for entry in cache.entries()]


def test_a_real_engine_is_listed_with_what_it_was_built_from(tmp_path: Path) -> None:
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine(batch=3))
    engine = cache.cached_engine(model, BuildOptions(tf32=False))
    facts = json.loads(cli.invoke(app, ["cache", "list", "--json"]).stdout)
    (entry,) = facts["entries"]
    assert entry["path"] == str(engine)
    assert entry["model"] == str(model)
    assert json.loads(entry["options"])["tf32"] is False
    assert entry["bytes"] == facts["bytes"] >= engine.stat().st_size
    assert abs(time.time() - entry["created"]) < 60
    table = cli.invoke(app, ["cache", "list"], env={"COLUMNS": "200"}).stdout
    assert engine.stem in table
    assert str(model) in table
    assert "TensorRT-RTX" in table


def test_a_hit_makes_an_entry_the_last_used(tmp_path: Path) -> None:
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine(batch=3))
    engine = cache.cached_engine(model)
    os.utime(engine.with_suffix(".json"), (1.0, 1.0))
    store("other", 10, HOUR)
    assert names() == ["other", engine.stem]
    assert cache.cached_engine(model) == engine
    assert names() == [engine.stem, "other"]


def test_prune_removes_what_was_used_longest_ago_until_the_rest_fits() -> None:
    for index in range(5):
        store(f"e{index}", 1000, (index + 1) * HOUR)
    one = cache.entries()[0].bytes
    removed = cache.prune(limit=3 * one)
    assert [entry.name for entry in removed] == ["e4", "e3"]
    assert names() == ["e0", "e1", "e2"]
    assert not cache.prune(limit=3 * one)
    assert [entry.name for entry in cache.prune(unused_for=1.5 * HOUR)] == ["e2", "e1"]
    leftovers = {path.suffix for path in (cache.cache_dir() / "engines").iterdir() if path.stem == "e4"}
    assert leftovers == {".lock"}


def test_prune_and_clear_leave_what_another_process_builds_and_prune_what_was_just_used() -> None:
    store("fresh", 1000, 1)
    store("locked", 1000, HOUR)
    store("old", 1000, HOUR)
    holder = (
        f"from filelock import FileLock\nwith FileLock({str(cache.cache_dir() / 'engines' / 'locked.lock')!r}):\n"
        " print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert [entry.name for entry in cache.prune(limit=0)] == ["old"]
        assert [entry.name for entry in cache.clear()] == ["fresh"]
        assert names() == ["locked"]
        other.communicate("\n")
    assert [entry.name for entry in cache.clear()] == ["locked"]
    assert not names()


def test_the_cache_is_bounded_after_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store("old", 10_000_000, HOUR)
    store("newer", 10_000_000, HOUR / 2)
    kernels = cache.cache_dir() / "runtime" / "k.cache"
    cache.write_atomic(kernels, bytes(1000))
    os.utime(kernels, (1.0, 1.0))
    monkeypatch.setenv("TRTRUN_CACHE_SIZE", "15MB")
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine(batch=3))
    engine = cache.cached_engine(model)
    assert engine.exists()
    assert sorted(names()) == sorted(["newer", engine.stem])
    monkeypatch.setenv("TRTRUN_CACHE_SIZE", "0")
    model.write_bytes(models.affine(batch=4))
    assert cache.cached_engine(model).exists()  # what was asked for stays, whatever the bound


def test_a_bound_that_cannot_be_read_is_said_and_what_was_asked_for_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRTRUN_CACHE_SIZE", "much")
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine(batch=3))
    assert cache.cached_engine(model).exists()
    assert "TRTRUN_CACHE_SIZE" in caplog.text
    with pytest.raises(trtrun.BuildError, match="TRTRUN_CACHE_SIZE"):
        cache.prune()


def test_half_written_files_of_dead_processes_go_and_those_of_living_ones_stay() -> None:
    folder = cache.cache_dir() / "engines"
    folder.mkdir(parents=True)
    dead, living = folder / ".a.engine.0123", folder / ".b.engine.4567"
    for path in (dead, living):
        path.write_bytes(b"half")
    os.utime(dead, (time.time() - 2 * HOUR,) * 2)
    cache.prune()
    assert list(folder.iterdir()) == [living]


def test_a_damaged_entry_is_listed_and_can_be_removed() -> None:
    path = store("damaged", 100, HOUR)
    path.with_suffix(".json").write_bytes(b"{")
    assert cache.entries()[0].model is None
    assert "facts are missing" in cli.invoke(app, ["cache", "list"]).stdout
    assert [entry.name for entry in cache.prune(limit=0)] == ["damaged"]


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        store(f"e{index}", 1_000_000, (index + 1) * HOUR * 24)
    result = cli.invoke(app, ["cache", "prune", "--size", "2.5MB", "--json"])
    assert [entry["name"] for entry in json.loads(result.stdout)["removed"]] == ["e2"]
    result = cli.invoke(app, ["cache", "prune", "--unused-for", "36h"])
    assert "removed 1 entries, 1 MB" in result.stdout
    result = cli.invoke(app, ["cache", "clear"])
    assert "removed 1 entries" in result.stdout
    assert json.loads(cli.invoke(app, ["cache", "list", "--json"]).stdout)["entries"] == []
    assert cli.invoke(app, ["cache", "list"]).exit_code == 0
    failed = cli.invoke(app, ["cache", "prune", "--unused-for", "soon"])
    assert isinstance(failed.exception, trtrun.BuildError)
    with FileLock(cache.cache_dir() / "engines" / "e0.lock", timeout=0):
        pass  # no command leaves a lock held


def _use(model: str, folder: str, found: multiprocessing.Queue) -> None:
    os.environ["TRTRUN_CACHE_DIR"] = folder
    found.put({len(cache.cached_plan(model)[1]) for _ in range(30)})


def test_what_a_process_was_given_cannot_be_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared"
    monkeypatch.setenv("TRTRUN_CACHE_DIR", str(folder))
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine(batch=3))
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    users = [context.Process(target=_use, args=(str(model), str(folder), found)) for _ in range(2)]
    for user in users:
        user.start()
    cleared = 0
    while any(user.is_alive() for user in users):
        cleared += len(cache.clear())
        time.sleep(0.01)
    for user in users:
        user.join()
        assert user.exitcode == 0
    sizes = [found.get(timeout=10) for _ in users]
    assert min(set.union(*sizes)) > 1000
    assert cleared >= 1


def test_prune_says_why_it_leaves_more_than_it_was_told(tmp_path: Path) -> None:
    store("new", 1000, used=0)
    result = CliRunner().invoke(app, ["cache", "prune", "--size", "0"])
    assert "removed 0 entries" in result.output
    assert "used within the last minute" in result.output
    assert names() == ["new"]
    assert "last minute" not in CliRunner().invoke(app, ["cache", "prune", "--size", "1MB"]).output


def test_sizes_are_said_without_exponents() -> None:
    sizes = {
        0: "0 B", 999: "999 B", 999_499: "999 kB", 999_600: "1 MB", 999_600_000: "1 GB", 20e9: "20 GB",
        1234e9: "1.23 TB", 998e12: "998 TB", 999.6e12: "1,000 TB", 5e18: "5,000,000 TB",
    }  # fmt: skip
    assert {count: _size(count) for count in sizes} == sizes
