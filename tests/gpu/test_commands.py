"""The commands that need a GPU, run as commands: their JSON is data, and their pages show what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.gpu.conftest import SHAPES
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes

Run = Callable[..., str]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "model.engine"
    options = BuildOptions(profiles=parse_shapes(SHAPES["convolution"]), detailed=True)
    path.write_bytes(build_plan(models.convolution(), options))
    return path


@pytest.fixture
def run() -> Run:
    """``run(command, …)``: what ``trtrun`` prints to stdout; its failure is the test's."""

    def run(*arguments: object, code: int = 0) -> str:
        command = [sys.executable, "-m", "trtrun", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def bars(page: str, label: str) -> list[str]:
    """The rectangles of the drawing with this label."""
    (drawing,) = re.findall(rf'<svg [^>]*aria-label="{label}">(.*?)</svg>', page, re.S)
    return re.findall(r"<rect .*?</rect>", drawing, re.S)


def test_bench(engine: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "bench.html"
    options = ["--shape", "x=4x3x64x64", "--streams", 2, "--duration", 0.3, "--warmup", 50, "--report", page]
    facts = json.loads(run("bench", engine, *options, "--json"))
    assert facts["shapes"] == {"x": [4, 3, 64, 64]}
    assert facts["mode"]["streams"] == 2
    assert facts["mode"]["graph_reason"] is None
    metrics = facts["metrics"]
    assert metrics["throughput"] * metrics["walltime"] == pytest.approx(metrics["inferences"])
    for name in ("latency", "enqueue", "h2d", "compute", "d2h"):
        one = metrics[name]
        ordered = [one["min"], one["median"], *(one["percentiles"][p] for p in ("90", "95", "99")), one["max"]]
        assert ordered == sorted(ordered)
        assert one["min"] >= 0
    assert metrics["compute"]["min"] > 0

    html = page.read_text()
    assert "http" not in html.replace("http://www.w3.org", "")  # self-contained
    for name, kind in (("latency", "latency"), ("compute", "compute")):
        histogram = bars(html, f"histogram of {name}")
        assert len(histogram) >= 10
        assert all(f'class="{kind}"' in bar for bar in histogram)
        counts = [int(re.search(r"ms: ([\d,]+)<", bar)[1].replace(",", "")) for bar in histogram]  # type: ignore[index]
        assert sum(counts) == metrics["inferences"]
    for percent in ("90%", "95%", "99%"):
        assert f"<th>{percent}</th>" in html
    assert f"{metrics['latency']['percentiles']['99']:.4f}" in html
    # Two streams with a lane for each kind of work, in which inferences follow each other.
    for stream in (0, 1):
        for lane in ("H2D", "compute", "D2H"):
            assert f">{stream} {lane}</text>" in html
    timeline = bars(html, "timeline")
    rows: dict[str, list[tuple[float, float]]] = {}
    for bar in timeline:
        at = {key: float(value) for key, value in re.findall(r'(x|y|width)="([\d.]+)"', bar)}
        kind = re.search(r'class="(\w+)', bar)[1]  # type: ignore[index]
        rows.setdefault(f"{at['y']} {kind}", []).append((at["x"], at["x"] + at["width"]))
    assert len(rows) == 6
    assert {row.split()[1] for row in rows} == {"h2d", "compute", "d2h"}
    assert all(len(row) >= 2 for row in rows.values())

    text = run("bench", engine, "--no-transfers", "--no-graph", "--duration", 0.1, "--warmup", 20)
    for title in ("Throughput:", "Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"):
        assert title in text
    assert "transfers NOT included" in text
    assert "no CUDA graph" in text


def test_profile(engine: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "layers.html"
    facts = json.loads(run("profile", engine, "--runs", 20, "--report", page, "--json"))
    layers = facts["layers"]
    assert facts["runs"] == 20
    assert facts["shapes"] == {"x": [2, 3, 32, 32]}  # what the profile was tuned for
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    assert sum(layer["median_ms"] for layer in layers) == pytest.approx(facts["total_ms"])
    assert all(0 <= layer["min_ms"] <= layer["median_ms"] <= layer["max_ms"] for layer in layers)
    html = page.read_text()
    drawn = re.findall(r'title="([^"]*)">.*?</td><td>([\d.]+)</td><td>[\d.]+%</td><td class="bar">', html)
    assert len(drawn) == len(layers) == html.count('<td class="bar"><span')
    assert [float(ms) for _, ms in drawn] == pytest.approx([layer["median_ms"] for layer in layers], abs=1e-4)
    widths = [float(width) for width in re.findall(r'<span style="width:([\d.]+)%">', html)]
    assert max(widths) == 100
    text = run("profile", engine, "--runs", 5, "--top", 1)
    assert f"{len(layers)} layers" in text
    assert len(layers) == 1 or f"{len(layers) - 1} more" in text


def test_inspect(engine: Path, run: Run) -> None:
    facts: dict[str, Any] = json.loads(run("inspect", engine, "--json"))
    assert "engine_unavailable" not in facts
    assert (facts["family"], facts["version"]) == ("tensorrt_rtx", "1.6.1.120")
    assert facts["bytes"] == engine.stat().st_size
    assert facts["compute_capabilities"]
    assert [tensor["name"] for tensor in facts["inputs"] + facts["outputs"]] == ["x", "y", "pooled"]
    assert facts["inputs"][0]["profiles"] == [{"min": [1, 3, 8, 8], "opt": [2, 3, 32, 32], "max": [4, 3, 64, 64]}]
    assert facts["optimization_profiles"] == 1
    assert facts["number_of_layers"] >= 1
    assert facts["profiling_verbosity"] == "detailed"
    assert facts["hardware_compatibility"]
    assert facts["refittable"] is False
    assert facts["streamable_weights_bytes"] >= 0
    assert isinstance(facts["weights_bytes"], int)
    assert facts["device_memory_bytes"] >= 0
    assert facts["layers"]
    text = run("inspect", engine)
    for said in ("compute capabilities", "number of layers", "profiling verbosity", "1×3×8×8…2×3×32×32…4×3×64×64"):
        assert said in text
    assert f"{engine.stat().st_size:,}" in text


def test_run(engine: Path, run: Run, tmp_path: Path) -> None:
    x = np.random.default_rng().standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out"
    facts = json.loads(run("run", engine, "-i", tmp_path / "x.npy", "-o", out, "--json"))
    assert {row["name"]: row["shape"] for row in facts["outputs"]} == {"y": [2, 8, 16, 16], "pooled": [2, 8]}
    y = np.load(out / "y.npy")
    np.testing.assert_allclose(np.load(out / "pooled.npy"), y.mean((2, 3)), rtol=2e-3)


def test_run_with_debug_tensors(run: Run, tmp_path: Path) -> None:
    """TensorRT-RTX 1.6 takes their marks and hands over none, which is said."""
    path = tmp_path / "marked.engine"
    path.write_bytes(build_plan(models.affine(batch=3), BuildOptions(debug_tensors=("h", "s"))))
    np.save(tmp_path / "x.npy", np.ones((3, 12), np.float32))
    command = ["run", path, "-i", tmp_path / "x.npy", "-o", tmp_path / "out", "--json", "--debug"]
    assert "no debug tensors" in run(*command, "h,s", code=1)
    assert "'y' was not marked" in run(*command, "h,y", code=1)
