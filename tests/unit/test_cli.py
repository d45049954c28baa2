from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun.cli import app
from trtrun.cuda.device import gpu_count

cli = CliRunner()


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "several.onnx"
    path.write_bytes(models.several())
    return path


def test_help_and_version() -> None:
    assert trtrun.__version__ in cli.invoke(app, ["--version"]).output
    for command in ("bench", "build", "cache", "compare", "demo", "inspect", "run"):
        assert command in cli.invoke(app, ["--help"]).output
        assert cli.invoke(app, [command, "--help"]).exit_code == 0


def test_build_and_inspect(onnx_file: Path, tmp_path: Path) -> None:
    engine = tmp_path / "out.engine"
    shapes = ["--shape", "images=1x4:2x4:8x4", "--shape", "size=1x4:2x4:8x4"]
    result = cli.invoke(app, ["build", str(onnx_file), "-o", str(engine), *shapes, "--specialize", "1,4"])
    assert result.exit_code == 0, result.output
    facts = json.loads(cli.invoke(app, ["inspect", str(engine), "--json"]).stdout)
    assert facts["family"] == "tensorrt_rtx"
    assert facts["bytes"] == engine.stat().st_size
    text = cli.invoke(app, ["inspect", str(engine)]).output
    assert "tensorrt_rtx" in text
    assert "8.0, 8.6" in text
    assert "images" in cli.invoke(app, ["inspect", str(onnx_file)]).output


def test_run(onnx_file: Path, tmp_path: Path) -> None:
    a, b = np.random.default_rng().standard_normal((2, 3, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    out = tmp_path / "out"
    inputs = ["-i", f"images={tmp_path / 'a.npy'}", "-i", f"size={tmp_path / 'b.npy'}"]
    result = cli.invoke(app, ["run", str(onnx_file), *inputs, "--output", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert [row["name"] for row in json.loads(result.stdout)["outputs"]] == ["total", "product", "scaled"]
    np.testing.assert_allclose(np.load(out / "product.npy"), a * b, rtol=1e-5)
    if gpu_count() == 0:
        result = cli.invoke(app, ["run", str(onnx_file), *inputs, "--output", str(out), "--debug", "total"])
        assert isinstance(result.exception, trtrun.InputError)
        assert "--debug reads tensors inside an engine" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "no.onnx"], "does not exist"),
        (["inspect", "no.engine"], "does not exist"),
        (["run", "{model}", "-i", "no.npy"], "2 inputs"),
        (["run", "{model}", "-i", "images=no.npy"], "cannot read 'no.npy'"),
        (["run", "{model}", "-i", "images={x}"], "missing: ['size']"),
        (["build", "{model}", "--shape", "images=1x4:2x4"], "NAME=MIN:OPT:MAX"),
        (["build", "{model}", "-o", "{x}/y/z.engine"], "Not a directory"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(
    arguments: list[str], says: str, onnx_file: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    filled = [argument.format(model=onnx_file, x=tmp_path / "x.npy") for argument in arguments]
    done = subprocess.run([sys.executable, "-m", "trtrun", *filled], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_bad_usage_is_exit_code_2() -> None:
    assert cli.invoke(app, ["build"]).exit_code == 2


def test_build_options_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(models.affine())
    Path("trtrun.toml").write_text('[build]\nshape = ["x=1x12:2x12:7x12"]\noutput = "from_file.engine"\nfp16 = true\n')
    assert CliRunner().invoke(app, ["build", "m.onnx"]).exit_code == 0
    plain = Path("from_file.engine").stat().st_size
    other = tmp_path / "other.toml"
    other.write_text('[build]\nshape = ["x=1x12:2x12:7x12"]\noptimization-level = 0\n')
    done = CliRunner().invoke(app, ["build", "m.onnx", "--config", str(other), "-o", "given.engine"])
    assert done.exit_code == 0, done.output
    assert Path("given.engine").stat().st_size != plain  # not fp16: the other file was read, and only that
    other.write_text('[build]\nmodel = "m.onnx"\noutputs = ["h"]\noutput = "h.engine"\n')  # as the options are called
    assert CliRunner().invoke(app, ["build", "--config", str(other)]).exit_code == 0
    assert Path("h.engine").exists()
    for text, said in (
        ("[build]\nshapes = 1\n", "does not know"),
        ("[build\n", "cannot be read"),
        ('[build]\nshape = "x=1x12"\n', "a list is expected"),
        ('[build]\nfp16 = "yes"\n', "true or false is expected"),
        ('[build]\noutput = ["a"]\n', "one value is expected"),
    ):
        other.write_text(text)
        failed = CliRunner().invoke(app, ["build", "m.onnx", "--config", str(other)])
        assert isinstance(failed.exception, trtrun.BuildError)
        assert said in str(failed.exception)
