"""The committed report of the GPU suite: written after a run on a GPU, checked anywhere.

python scripts/gpu_report.py write JUNIT.xml …  store tests/gpu/report.json from pytest's --junitxml files: parts of the
                                                suite may run side by side on several GPUs
python scripts/gpu_report.py check              exit 1 when the source has changed since, or a test failed
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "tests" / "gpu" / "report.json"
FOLDERS = ("src", "tests/gpu")
REPORTS = ("tests/gpu/report.json", "tests/gpu/sanitizer.json")  # which say of what source they are


def source_hash(root: Path = ROOT) -> str:
    """SHA-256 over the paths and contents of the files under src/ and tests/gpu/, the reports excepted.

    Files that git does not know yet count too: in a copy of the working tree elsewhere, new ones are untracked.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *FOLDERS]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = [root / name for name in listed.stdout.split("\0") if name]
    else:  # a copy without git, as on a GPU machine that was handed the files: the same files, walked
        paths = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    paths = [path for path in paths if not _is_by_product(path.relative_to(root))]
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if name in REPORTS or not path.exists():
            continue
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_by_product(path: Path) -> bool:
    """True for what Python, pytest, mypy and installers leave in the tree and git ignores."""
    return path.suffix == ".pyc" or any(
        part == "__pycache__" or part.startswith(".") or part.endswith(".egg-info") for part in path.parts
    )


def tests_of(junit: Path) -> dict[str, str]:
    """Outcome by test name from a JUnit XML file."""
    outcomes = {}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = next((kind for kind in ("failure", "error", "skipped") if kind in kinds), "passed")
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = {"failure": "failed"}.get(outcome, outcome)
    return outcomes


def environment() -> dict[str, Any]:
    from trtrun import flavor
    from trtrun.cuda.device import Device

    device = Device()
    return {
        "gpu": device.name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "driver": f"CUDA {device.driver_version}",
        "flavors": [flavor.load(name).title for name in flavor.installed()],
        "python": sys.version.split()[0],
    }


def write(*junit: Path) -> int:
    tests = {name: outcome for file in junit for name, outcome in tests_of(file).items()}
    counts = {kind: sum(outcome == kind for outcome in tests.values()) for kind in sorted(set(tests.values()))}
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **environment(),
        "source_hash": source_hash(),
        "counts": counts,
        "tests": tests,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{REPORT}: {counts}")
    return 0


def check(report: Path = REPORT, root: Path = ROOT) -> int:
    if not report.exists():
        print("there is no report of the GPU suite; run make gpu-test on a machine with a GPU")
        return 1
    data = json.loads(report.read_text())
    bad = [name for name, outcome in data["tests"].items() if outcome not in ("passed", "skipped")]
    if bad:
        print(f"the GPU suite failed on {data['date']}: {', '.join(bad)}")
        return 1
    if "passed" not in data["tests"].values():
        print(f"no test of the GPU suite ran on {data['date']}; run make gpu-test on a machine with a GPU")
        return 1
    if data["source_hash"] != source_hash(root):
        print(f"src/ or tests/gpu/ changed since the GPU suite ran on {data['date']}; run make gpu-test again")
        return 1
    print(f"GPU suite of {data['date']} on {data['gpu']}: {data['counts']}, this source")
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) > 1 and arguments[0] == "write":
        sys.exit(write(*map(Path, arguments[1:])))
    if arguments == ["check"]:
        sys.exit(check())
    sys.exit(__doc__)
