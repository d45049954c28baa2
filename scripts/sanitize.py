"""compute-sanitizer over trtrun's own kernels and a request from end to end: written on a GPU, checked anywhere.

    python scripts/sanitize.py [memcheck] [initcheck]   run both, or the named tools; store tests/gpu/sanitizer.json
    python scripts/sanitize.py check                    exit 1 when the source has changed since, or an error was found

**memcheck** watches every kernel, TensorRT's too: one that leaves its tensors was given the wrong memory. Every error
counts. CUDA calls that return an error do not: libraries look for symbols that older drivers lack, and trtrun raises
for its own calls. **initcheck** must watch every kernel as well, or what TensorRT wrote would count as never written;
but TensorRT's kernels read padding that nobody wrote, so only reads by the kernels of src/trtrun/cuda/kernels count,
and the others are stored as ``elsewhere``.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_report

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "tests" / "gpu" / "sanitizer.json"
KERNELS = ROOT / "src" / "trtrun" / "cuda" / "kernels"
TIMEOUT = 100.0  # seconds for each tool; start-up under it takes tens of them
PRINTED = 2000  # reports; what is found beyond them is counted but belongs to no kernel

_VISION = "tests/gpu/test_vision_kernels.py"
# Each kernel at least once, on the smallest data that its tests have, and a session up to its CUDA graph.
SELECTION = [
    "tests/gpu/test_transfer.py",
    f"{_VISION}::test_rows_without_a_picture_are_zeros",
    f"{_VISION}::test_nv12",
    f"{_VISION}::test_grid",
    f"{_VISION}::test_none_one_and_all_in_one_place",
    f"{_VISION}::test_anchor_free[sparse-8400-float16]",
    f"{_VISION}::test_oriented_boxes[0.2-float16]",
    f"{_VISION}::test_faces[float32]",
    f"{_VISION}::test_suppression_alone[1]",
    "tests/gpu/test_session.py::test_static_engine_is_captured_after_its_first_request",
]


def kernel_names(folder: Path = KERNELS) -> set[str]:
    """The names of trtrun's own kernels."""
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.cu")))
    return set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text))


def summarize(log: str, own: set[str]) -> dict[str, Any]:
    """What a log of compute-sanitizer comes to.

    ``total`` is the sum of its ERROR SUMMARY lines, one for each process, and None without any: then the tool did not
    come to its end. ``own`` and ``elsewhere`` count the printed reports whose kernel is, or is not, one of ``own``;
    ``reports`` has the first line of each kind of report and its kernel, with how often it was printed.
    """
    summaries = [int(count) for count in re.findall(r"^=+ ERROR SUMMARY: (\d+) errors?\s*$", log, re.M)]
    counts: dict[str, int] = {}
    ours = 0
    for title, body in re.findall(r"^=+ (?! )(\S.*)\n((?:^=+ {2,}.*\n?|^=+\s*\n)*)", log, re.M):
        if not body.strip("= \n") or title.startswith(("COMPUTE-SANITIZER", "ERROR SUMMARY")):
            continue
        kernel = next((name for name in sorted(own) if re.search(rf"\b{name}\b", _place(body))), None)
        ours += kernel is not None
        kind = f"{title}, in {kernel or 'no kernel of trtrun: ' + (_place(body).strip() or 'a CUDA call')[:160]}"
        counts[kind] = counts.get(kind, 0) + 1
    printed = sum(counts.values())
    return {
        "total": sum(summaries) if summaries else None,
        "own": ours,
        "elsewhere": printed - ours,
        "reports": dict(sorted(counts.items(), key=lambda item: -item[1])[:20]),
    }


def tests_failed(log: str) -> bool:
    """Whether pytest's summary counts any; the tool's own, of its errors, is not meant."""
    return re.search(r"^(?!=+ ERROR SUMMARY).*\b\d+ (failed|error)", log, re.M) is not None


def _place(body: str) -> str:
    """The line that names the kernel, which comes before the host's backtrace."""
    return next((line.lstrip("= ") for line in body.splitlines() if re.match(r"=+\s+at ", line)), "")


def errors_of(tool: str, found: dict[str, Any]) -> int:
    """The errors that count; see the top of this file."""
    if tool == "memcheck":
        return int(found["total"])
    # Where not all were printed, those that were not could be anybody's: they count, so that none is missed.
    hidden = max(0, found["total"] - found["own"] - found["elsewhere"])
    return int(found["own"] + hidden)


def run(tool: str, selection: list[str] = SELECTION) -> dict[str, Any]:
    """One tool over the selection, in a process group of its own that does not outlive ``TIMEOUT``."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        watch = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--print-limit", str(PRINTED)]
        # Padding: else what is written behind one allocation lies in the next, and is no error.
        watch += ["--report-api-errors", "no", "--padding", "4096"] if tool == "memcheck" else []
        # Not verbose, no cache of outcomes, and the runtime cache beside the log: what is compiled here stays here.
        tests = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *selection]
        environment = {**os.environ, "TRTRUN_CACHE_DIR": folder}
        with log.open("w") as out:
            process = subprocess.Popen(
                [*watch, *tests], cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            try:
                code: int | None = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        text = log.read_text(errors="replace")
    passed = re.search(r"(\d+) passed", text)
    found = {
        "tool": tool,
        "selection": selection,
        "tests_passed": int(passed[1]) if passed else 0,
        "seconds": round(time.monotonic() - start),
        **summarize(text, kernel_names()),
    }
    if code is None:
        found["failure"] = f"not done after {TIMEOUT:.0f} s"
    elif found["total"] is None or not passed or re.search(r"^=+ (Internal Sanitizer )?Error: ", text, re.M):
        # A sandbox may keep the tool from the GPU: it says "Device not supported" then.
        found["failure"] = f"exit status {code}: {text[-600:]}"
    elif code or tests_failed(text):
        found["failure"] = f"tests failed: {text[-600:]}"
    found["errors"] = None if found["total"] is None else errors_of(tool, found)
    return found


def version() -> str:
    said = subprocess.run(["compute-sanitizer", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"[Vv]ersion (\S+)", said)
    return found[1] if found else said.strip()


def write(tools: list[str]) -> int:
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on the PATH: it comes with NVIDIA's CUDA toolkit")
        return 1
    with ThreadPoolExecutor(len(tools)) as threads:  # side by side: each keeps one core busy and the GPU idle
        results = list(threads.map(run, tools))
    for found in results:
        print(json.dumps({key: value for key, value in found.items() if key != "selection"}, indent=1), flush=True)
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "compute_sanitizer": version(),
        **gpu_report.environment(),
        "source_hash": gpu_report.source_hash(),
        "runs": results,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    return check()


def check(report: Path = REPORT, root: Path = ROOT) -> int:
    if not report.exists():
        print("there is no report of compute-sanitizer; run make sanitize on a machine with a GPU")
        return 1
    data = json.loads(report.read_text())
    bad = [run for run in data["runs"] if run.get("failure") or run["errors"] != 0]
    for found in bad:
        print(f"{found['tool']} on {data['date']}: {found.get('failure') or str(found['errors']) + ' errors'}")
    if {run["tool"] for run in data["runs"]} < {"memcheck", "initcheck"}:
        print("memcheck and initcheck were not both run; run make sanitize on a machine with a GPU")
        return 1
    if data["source_hash"] != gpu_report.source_hash(root):
        print(f"src/ or tests/gpu/ changed since compute-sanitizer ran on {data['date']}; run make sanitize again")
        return 1
    if not bad:
        print(f"compute-sanitizer {data['compute_sanitizer']} of {data['date']} on {data['gpu']}: no errors")
    return 1 if bad else 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments == ["check"]:
        sys.exit(check())
    if set(arguments) <= {"memcheck", "initcheck"}:
        sys.exit(write(arguments or ["memcheck", "initcheck"]))
    sys.exit(__doc__)
