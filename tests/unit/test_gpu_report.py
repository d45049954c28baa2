from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "scripts" / "gpu_report.py")
assert spec is not None
assert spec.loader is not None
gpu_report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_report)

JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="good"/><testcase classname="a" name="bad"><failure>no</failure></testcase>
<testcase classname="a" name="not"><skipped/></testcase></testsuite></testsuites>"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("src/trtrun/a.py", "tests/gpu/test_a.py", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def report(tree: Path, **changes: object) -> Path:
    path = tree / "tests" / "gpu" / "report.json"
    data = {"date": "2026-01-01", "gpu": "GPU", "counts": {}, "tests": {"a": "passed"}}
    path.write_text(json.dumps({**data, "source_hash": gpu_report.source_hash(tree), **changes}))
    return path


def test_hash_is_the_same_with_and_without_git(tree: Path) -> None:
    walked = gpu_report.source_hash(tree)
    (tree / "src/trtrun/__pycache__").mkdir()
    (tree / "src/trtrun/__pycache__/a.pyc").write_text("x")
    (tree / "src/.mypy_cache").mkdir()
    (tree / "src/.mypy_cache/cache.db").write_text("x")
    assert gpu_report.source_hash(tree) == walked
    subprocess.run("git init -q && git add src/trtrun/a.py tests README.md", shell=True, cwd=tree, check=True)
    assert gpu_report.source_hash(tree) == walked
    (tree / "src/trtrun/new.py").write_text("not known to git yet")
    with_new = gpu_report.source_hash(tree)
    assert with_new != walked
    subprocess.run("git add src/trtrun/new.py", shell=True, cwd=tree, check=True)
    assert gpu_report.source_hash(tree) == with_new


def test_check_notices_changes_and_failures(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = report(tree)
    assert gpu_report.check(path, tree) == 0
    (tree / "README.md").write_text("changed")
    assert gpu_report.check(path, tree) == 0
    (tree / "src/trtrun/a.py").write_text("changed")
    assert gpu_report.check(path, tree) == 1
    assert "changed since" in capsys.readouterr().out
    assert gpu_report.check(report(tree, tests={"a": "passed", "b": "failed"}), tree) == 1
    assert "b" in capsys.readouterr().out
    assert gpu_report.check(report(tree, tests={"a": "skipped"}), tree) == 1
    assert "no test" in capsys.readouterr().out
    assert gpu_report.check(tree / "none.json", tree) == 1


def test_outcomes_are_read_from_junit(tmp_path: Path) -> None:
    path = tmp_path / "j.xml"
    path.write_text(JUNIT)
    assert gpu_report.tests_of(path) == {"a::good": "passed", "a::bad": "failed", "a::not": "skipped"}
