"""What a log of compute-sanitizer comes to."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOG = """========= COMPUTE-SANITIZER
.........                                                                [100%]
========= Uninitialized __global__ memory read of size 16 bytes
=========     at copy_small+0x210
=========     by thread (3,0,0) in block (0,1,0)
=========     Access at 0x7f0000000000 is inside the nearest allocation at 0x7f0000000000 of size 64 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernel [0x1] in libcuda.so.1
=========         Host Frame: at suppress_something in lib.so
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at __myl_Relu+0x40 in some_library
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at 0x70 in suppress(Candidates, int, Kept)
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Host API uninitialized memory access
=========     Access of size 4 at 0x7f0000000000 by cuMemcpyDtoHAsync
=========
9 passed in 3.21s
========= ERROR SUMMARY: 4 errors
"""


@pytest.fixture(scope="module")
def sanitize():
    scripts = str(ROOT / "scripts")
    sys.path.insert(0, scripts)
    try:
        spec = importlib.util.spec_from_file_location("sanitize", ROOT / "scripts" / "sanitize.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(scripts)


@pytest.mark.parametrize(
    ("summary", "failed"),
    [
        ("9 passed in 3.21s", False),
        ("1 failed, 8 passed in 3.21s", True),
        ("8 passed, 1 error in 3.21s", True),
        ("========= 2 failed, 7 passed in 3.21s =========", True),
    ],
)
def test_failed_tests_are_those_of_pytest(sanitize, summary: str, failed: bool) -> None:
    assert sanitize.tests_failed(LOG.replace("9 passed in 3.21s", summary)) is failed


def test_the_kernels_are_found_in_the_sources(sanitize) -> None:
    names = sanitize.kernel_names()
    assert {"copy_small", "select_f16", "suppress", "gather_f32", "prepare_4"} <= names
    launched = "".join(path.read_text() for path in (ROOT / "src" / "trtrun").rglob("*.py"))
    assert all(name in launched or name.rpartition("_")[0] in launched for name in names)


def test_reports_are_told_apart_by_their_kernel(sanitize) -> None:
    found = sanitize.summarize(LOG, {"copy_small", "suppress"})
    assert (found["total"], found["own"], found["elsewhere"]) == (4, 2, 2)
    assert sanitize.errors_of("memcheck", found) == 4
    assert sanitize.errors_of("initcheck", found) == 2
    assert "in copy_small" in " ".join(found["reports"])


def test_what_was_not_printed_counts(sanitize) -> None:
    text = LOG.replace("SUMMARY: 4 errors", "SUMMARY: 4000 errors")
    text += "========= ERROR SUMMARY: 3996 errors were not printed. Use --print-limit option to adjust\n"
    found = sanitize.summarize(text, {"copy_small", "suppress"})
    assert found["total"] == 4000
    assert sanitize.errors_of("initcheck", found) == 3998


def test_every_process_has_a_summary_and_none_means_it_did_not_end(sanitize) -> None:
    clean = "========= COMPUTE-SANITIZER\n9 passed in 1s\n========= ERROR SUMMARY: 0 errors\n"
    assert sanitize.summarize(clean, set()) == {"total": 0, "own": 0, "elsewhere": 0, "reports": {}}
    assert sanitize.summarize(clean + "========= ERROR SUMMARY: 1 error\n", set())["total"] == 1
    assert sanitize.summarize("========= COMPUTE-SANITIZER\n", set())["total"] is None


def test_a_report_fails_for_errors_missing_tools_and_other_source(
    sanitize, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("a")

    def checked(**changes: object) -> int:
        runs = [{"tool": tool, "errors": 0} for tool in ("memcheck", "initcheck")]
        data = {"date": "2026-01-01", "gpu": "GPU", "compute_sanitizer": "1", "runs": runs}
        path = tmp_path / "sanitizer.json"
        source = sanitize.gpu_report.source_hash(tmp_path)
        path.write_text(json.dumps({**data, "source_hash": source, **changes}))
        return sanitize.check(path, tmp_path)

    assert checked() == 0
    assert checked(runs=[{"tool": "memcheck", "errors": 0}]) == 1
    assert checked(runs=[{"tool": "memcheck", "errors": 0}, {"tool": "initcheck", "errors": 1}]) == 1
    slow = {"tool": "initcheck", "errors": None, "failure": "not done after 100 s"}
    assert checked(runs=[{"tool": "memcheck", "errors": 0}, slow]) == 1
    assert "not done" in capsys.readouterr().out
    assert checked(source_hash="other") == 1
    assert sanitize.check(tmp_path / "none.json", tmp_path) == 1


def test_the_selection_names_tests_that_exist(sanitize) -> None:
    for name in sanitize.SELECTION:
        file, _, test = name.partition("::")
        assert (ROOT / file).exists()
        assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text()
