from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun.bundle import write_bundle
from trtrun.cli import app, main
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
        (["run", "{model}", "-i", "images=no.npy"], "cannot read 'no.npy': it does not exist"),
        (["run", "{model}", "-i", "images={x}"], "do not match the model's (missing: ['size'])"),
        (
            ["bundle", "header", "{model}", "{x}", "no.engine"],
            "an engine is needed here. Build it first: trtrun build {model}",
        ),
        (["build", "{model}", "--shape", "images=1x4:2x4"], "NAME=MIN:OPT:MAX"),
        (["build", "{model}", "-o", "{x}/z.engine"], "is not a folder"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(
    arguments: list[str], says: str, onnx_file: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    filled = [argument.format(model=onnx_file, x=tmp_path / "x.npy") for argument in arguments]
    done = subprocess.run([sys.executable, "-m", "trtrun", *filled], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert says.format(model=onnx_file) in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.skipif(gpu_count() > 0, reason="says what to do without a GPU")
@pytest.mark.parametrize("command", ["bench", "profile"])
@pytest.mark.parametrize("model", ["several.onnx", "several.engine"])
def test_what_measures_a_gpu_asks_for_one_first(command: str, model: str, onnx_file: Path) -> None:
    error = cli.invoke(app, [command, str(onnx_file.with_name(model))]).exception
    assert isinstance(error, trtrun.NoGpuError)
    assert str(error).startswith("an engine is measured on an NVIDIA GPU, and ")
    assert "ONNX" not in str(error)


def test_bad_usage_is_exit_code_2() -> None:
    assert cli.invoke(app, ["build"]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("compare m.onnx m.onnx", 0),
        ("compare m.onnx n.onnx", 1),
        ("-v compare m.onnx no.onnx", 2),
        ("build no.onnx", 1),
    ],
)
def test_models_that_differ_are_told_from_errors(
    arguments: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    proto = onnx.load_from_string(models.affine())
    onnx.save(proto, "m.onnx")
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights * 2, proto.graph.initializer[0].name))
    onnx.save(proto, "n.onnx")
    monkeypatch.setattr(sys, "argv", ["trtrun", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status


def test_an_error_of_another_library_is_no_difference_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path) -> bool:
        raise ZeroDivisionError("theirs")

    monkeypatch.setattr("trtrun.plan.is_onnx_file", fail)
    monkeypatch.setattr(sys, "argv", ["trtrun", "compare", "a.onnx", "b.onnx"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "ZeroDivisionError: theirs" in capsys.readouterr().err


def test_an_interrupt_while_it_imports_is_no_traceback() -> None:
    script = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from trtrun.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
    scripts = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    assert 'trtrun = "trtrun.__main__:main"' in scripts


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: m.onnx (x [N, 12]), c.onnx (a convolution, x [N, 3, H, W]), e.engine, and x.npz."""
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(models.affine())
    Path("c.onnx").write_bytes(models.convolution())
    Path("static.onnx").write_bytes(models.affine(batch=3))
    trtrun.build("static.onnx", "e.engine")
    np.savez("x.npz", x=np.ones((1, 12), np.float32))
    return tmp_path


def test_run_does_not_write_over_what_it_reads(folder: Path) -> None:
    np.save("y.npy", np.ones((1, 12), np.float32))
    before = Path("y.npy").read_bytes()
    result = cli.invoke(app, ["run", "m.onnx", "-i", "x=y.npy", "-o", "."])
    assert isinstance(result.exception, trtrun.InputError)
    assert "would be written over what it is made from" in str(result.exception)
    assert Path("y.npy").read_bytes() == before
    for _ in range(2):
        assert cli.invoke(app, ["run", "m.onnx", "-i", "x=y.npy", "-o", "out"]).exit_code == 0


BIG = "99999999999999999999999"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("build .", "it is a directory"),
        ("build m.onnx --shape x=-1x12:2x12:3x12", "dimensions of a profile are 0 or more"),
        ("build m.onnx --shape x=3000000000x12", "no dimension can exceed 2,147,483,647"),
        (f"build m.onnx --shape x={BIG}x12", "no dimension can exceed"),
        (f"build m.onnx --shape x={'9' * 5000}x12", "no dimension can exceed"),
        (f"build m.onnx --input-shape x={BIG}x12", "no dimension can exceed"),
        ("build m.onnx --input-shape x=-2x12", "-1 to 2,147,483,647"),
        ("build m.onnx --input-shape 5x12", "cannot read --input-shape '5x12'"),
        ("build m.onnx --specialize -4", "batch sizes are whole numbers, 1 or more"),
        ("build m.onnx --specialize a", "cannot read --specialize 'a': write batch sizes, like 8 or 1,8,32"),
        ("build m.onnx --shape x=0x12", "only MIN may be 0"),
        ("build m.onnx --shape x=0x12:0x12:4x12", "only MIN may be 0"),
        ("build m.onnx --compute-capability 9.9", "unknown compute capability 'sm_99'"),
        ("build m.onnx --compute-capability 8.9 --compute-capability sm_89", "sm_89 more than once"),
        ("build m.onnx --specialize 0", "batch sizes are whole numbers, 1 or more"),
        ("build m.onnx --shape x=1x12:2x12:32x12 --specialize 1,64", "batches of 1 to 32"),
        (f"build m.onnx --workspace {BIG}GiB", "more bytes than any memory has"),
        (f"build m.onnx --workspace {'9' * 400}", "more bytes than any memory has"),
        (
            "build m.onnx --workspace 2048",
            "is 2,048 bytes, too few for any layer. Write the unit: 2048M or 2G are 2 GiB",
        ),
        ("build m.onnx --keep-fp32 MatMul", "keep_fp32 has an effect only with fp16 or bf16"),
        ("build m.onnx --convert-io", "only with fp16 or bf16"),
        ("build m.onnx --inputs x.npz", "--inputs: of no effect without --verify"),
        ("build m.onnx --range x=0:1 --l2 0.1", "--range, --l2: of no effect without --verify"),
        ("build m.onnx --outputs y --outputs y", "outputs names y more than once"),
        ("build m.onnx --compute-capability sm_89 --compute-capability SM89", "sm_89 more than once"),
        ("build m.onnx -o folder", "is a folder"),
        ("build m.onnx -o m.onnx", "written over what it is made from"),
        ("build m.onnx -o link.onnx", "written over what it is made from"),
        ("build m.onnx -o pipe", "is a device"),
        ("build m.onnx -o new/e.engine", "there is no folder"),
        ("build m.onnx -o /proc/e.engine", "'/proc/e.engine' cannot be written: '/proc' may not be written to"),
        ("compare m.onnx m.onnx --report new/r.html", "there is no folder"),
        ("compare m.onnx m.onnx --report folder", "is a folder, and a file is to be written"),
        ("run no.onnx -i x.npy -o text.txt", "nothing can be written to 'text.txt': "),
        ("run no.onnx -i x.npy -o text.txt/out", "text.txt' is not a folder"),
        ("run no.onnx -i x.npy -o /proc/out", "'/proc' may not be written to. Name another folder"),
        ("detect no.jpg -m no.onnx --out text.txt", "nothing can be written to 'text.txt': "),
        ("demo -o /proc/demo", "'/proc' may not be written to. Name another folder"),
        ("build m.onnx -o text.txt/e.engine", "text.txt' is not a folder"),
        ("quantize static.onnx --data x.npz -o new/q.onnx", "there is no folder"),
        ("bundle create new/b.bundle --onnx static.onnx", "there is no folder"),
        ("quantize static.onnx --data x.npz -o static.onnx", "written over"),
        ("quantize static.onnx --data x.npz -o x.npz", "written over"),
        ("bundle create e.engine --engine e.engine", "written over"),
        ("bundle create static.onnx --onnx static.onnx", "written over"),
        ("bundle create text.txt --onnx static.onnx --labels text.txt", "written over"),
        ("bundle create pipe --engine e.engine", "is a device"),
        ("bundle create b --engine e.engine --labels latin1.txt", "cannot read the names"),
        ("bundle create b --engine e.engine@foo", "'foo' is no compute capability"),
        ("bundle keygen k.pem ./k.pem", "both keys would be written"),
        ("bundle header e.engine md.json md.json", "written over"),
        ("compare m.onnx m.onnx --shape x=999999999999999x12", "no dimension can exceed"),
        (f"compare m.onnx m.onnx --shape x={BIG}x12", "no dimension can exceed"),
        ("compare m.onnx m.onnx --shape x=2000000000x12", "bytes are needed to make up input 'x'"),
        ("compare m.onnx m.onnx --device 1", "--device: of no effect on two ONNX files"),
        ("compare m.onnx m.onnx --plugin p.so --fp16", "--plugin, --fp16: of no effect on two ONNX files"),
        ("compare e.engine e.engine --fp16", "--fp16: of no effect on engines that are built"),
        ("compare m.onnx m.onnx --report m.onnx", "written over what it is made from"),
        ("inspect noext", "Name it *.onnx, or build it first: trtrun build noext"),
        ("bundle header b.bundle md.json e2.engine", "trtrun bundle show"),
        ("bundle create b --engine e.engine --key no.pem", "trtrun bundle keygen"),
        ("bundle verify b.bundle --key no.pem", "cannot read the public key 'no.pem': it does not exist. A pair"),
        ("bundle keygen text.txt new.pem", "a private key is not written over"),
        ("bundle keygen new.pem nowhere/k.pem", "there is no folder"),
        ("bundle create b --engine e.engine --metadata no.json", "cannot read 'no.json': it does not exist"),
        ("bundle create b --engine e.engine --labels no.txt", "names in 'no.txt': it does not exist"),
        ("run static.onnx -i x=no.npy", "cannot read 'no.npy': it does not exist"),
        ("run static.onnx -i text.txt", "'text.txt' is no .npy file"),
        ("run static.onnx -i x.npz", "'x.npz' is no .npy file"),
        ("compare m.onnx m.onnx --inputs no.npz", "cannot read 'no.npz': it does not exist"),
        (
            "compare m.onnx m.onnx --inputs x.npy",
            "one array without the name of its input. A .npz file has names: numpy",
        ),
        (
            "compare m.onnx m.onnx --inputs m.onnx",
            "'m.onnx' is no .npz file, which holds an array per input name: numpy",
        ),
        ("compare m.onnx m.onnx --inputs cut.npz", "cannot read 'cut.npz' as a .npz archive: "),
        ("compare m.onnx m.onnx --inputs folder", "cannot read 'folder': Is a directory"),
        ("compare m.onnx c.onnx", "the models differ: input 'x' is -1×12 in one and -1×3×-1×-1 in the other"),
        ("compare static.onnx five.onnx", "the models differ: input 'x' is 3×12 in one and 5×12 in the other"),
        ("build m.onnx --int8", "trtrun quantize"),
        ("build m.onnx --fp8", "trtrun quantize"),
    ],
)
def test_bad_input_is_one_typed_error(folder: Path, command: str, says: str) -> None:
    Path("folder").mkdir()
    Path("link.onnx").symlink_to("m.onnx")
    os.mkfifo("pipe")  # stands for devices too
    Path("text.txt").write_text("cat")
    np.save("x.npy", np.ones((1, 12), np.float32))
    Path("cut.npz").write_bytes(Path("x.npz").read_bytes()[:100])
    Path("noext").write_bytes(models.affine())
    Path("md.json").write_text("{}")
    Path("latin1.txt").write_bytes(b"\xe9")
    Path("five.onnx").write_bytes(models.affine(batch=5))
    write_bundle("b.bundle", engines=["e.engine"])
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = cli.invoke(app, command.split(" "))
    assert isinstance(result.exception, trtrun.TrtrunError), (result.output, result.exception)
    assert says in str(result.exception)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_model_is_not_written_over_by_way_of_its_external_data(folder: Path) -> None:
    proto = onnx.load("static.onnx")
    onnx.save(proto, "external.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    before = Path("w.bin").read_bytes()
    for command in ("build external.onnx", "quantize external.onnx --data x.npz"):
        result = cli.invoke(app, [*command.split(" "), "-o", "w.bin"])
        assert isinstance(result.exception, trtrun.BuildError), result.output
    result = cli.invoke(app, ["bundle", "create", "w.bin", "--onnx", "external.onnx"])
    assert isinstance(result.exception, trtrun.BundleError)
    assert Path("w.bin").read_bytes() == before


def test_an_engine_may_replace_an_engine(folder: Path) -> None:
    for _ in range(2):
        assert cli.invoke(app, ["build", "static.onnx", "-o", "new.engine"]).exit_code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("build = 3", "build is no table"),
        ("[[build]]\nfp16 = true", "build is no table"),
        ("[bild]\nfp16 = true", "holds ['bild']"),
        ("fp16 = true", "holds ['fp16']"),
        ("[build]\nkeep-fp32 = ['MatMul']", "only with fp16 or bf16"),
    ],
)
def test_a_file_of_options_that_cannot_be_meant(folder: Path, text: str, says: str) -> None:
    Path("trtrun.toml").write_text(text)
    result = cli.invoke(app, ["build", "static.onnx"])
    assert isinstance(result.exception, trtrun.BuildError), result.output
    assert says in str(result.exception)


def test_options_from_the_working_directory_are_said(folder: Path) -> None:
    assert "trtrun.toml" not in cli.invoke(app, ["build", "static.onnx"]).output
    Path("trtrun.toml").write_text("[build]\nfp16 = true")
    assert "options from trtrun.toml" in cli.invoke(app, ["build", "static.onnx"]).output


def test_what_build_writes_in_front_of_a_plan_is_said_and_shown(folder: Path) -> None:
    proto = onnx.load("static.onnx")
    onnx.helper.set_model_props(proto, {"task": "detect", "names": "{0: 'c[red]at'}", "license": "AGPL"})
    onnx.save(proto, "yolo.onnx")
    done = cli.invoke(app, ["build", "yolo.onnx"])
    assert done.exit_code == 0, done.output
    assert "the ONNX file's metadata (task, names, license)" in done.output
    assert "--no-header" in done.output
    assert "c[red]at" in cli.invoke(app, ["inspect", "yolo.engine"]).output
    done = cli.invoke(app, ["build", "yolo.onnx", "--no-header", "-o", "bare.engine"])
    assert "metadata" not in done.output
    assert Path("bare.engine").read_bytes()[:4] == b"vtrt"


def test_names_with_brackets_and_colons_are_printed_as_they_are(folder: Path) -> None:
    name = "a[red]b:cat:.onnx"
    proto = onnx.load("static.onnx")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "x[bold]"
    onnx.save(proto, name)
    shown = cli.invoke(app, ["inspect", name]).output
    assert name in shown
    assert "x[bold]" in shown
    done = cli.invoke(app, ["build", name, "-o", "x[tensorrt].engine"])
    assert "x[tensorrt].engine:" in done.output
    np.save("[x].npy", np.ones((3, 12), np.float32))
    assert "[x]:cat:/y.npy" in cli.invoke(app, ["run", name, "-i", "[x].npy", "-o", "[x]:cat:"]).output
    assert cli.invoke(app, ["bundle", "create", "m.bundle", "--onnx", name, "--name", "[i]:cat:"]).exit_code == 0
    assert "[i]:cat:" in cli.invoke(app, ["bundle", "show", "m.bundle"]).output


def test_one_console_for_all_commands() -> None:
    folder = Path(trtrun.__file__).parent / "cli"
    made = [path.name for path in folder.glob("*.py") if re.search(r"(?<!\w)Console\(", path.read_text())]
    assert made == ["console.py"]


def test_an_array_of_another_shape_is_no_reason_to_rebuild_what_was_not_built(folder: Path) -> None:
    np.save("x.npy", np.ones((1, 12), np.float32))
    done = cli.invoke(app, ["run", "static.onnx", "-i", "x.npy"])
    assert "take a model that was exported or built for this shape" in str(done.exception)
    assert cli.invoke(app, ["run", "static.onnx", "-i", "x.npy", "--input-shape", "x=1x12"]).exit_code == 0


@pytest.mark.skipif(gpu_count() > 0, reason="a GPU would load the engine")
def test_inspect_says_why_a_plan_shows_no_inputs_and_what_other_gpus_are(folder: Path) -> None:
    shown = " ".join(cli.invoke(app, ["inspect", "e.engine"]).output.split())
    assert "inputs and outputs are not shown: only an engine that is loaded tells them" in shown
    assert "trtrun inspect model.onnx" in shown
    assert "12.1, and others, as in every engine that was built for all GPUs" in shown
    assert "not shown" not in cli.invoke(app, ["inspect", "static.onnx"]).output


def test_inspect_shows_a_bundle_as_bundle_show_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle("b.bundle", engines=["e.engine"], onnx="static.onnx")
    archives = Mock(wraps=zipfile.ZipFile)
    monkeypatch.setattr(zipfile, "ZipFile", archives)
    shown = cli.invoke(app, ["inspect", "b.bundle"])
    assert shown.exit_code == 0, shown.output
    assert archives.call_count == 1
    assert "every GPU" in shown.output
    assert shown.output == cli.invoke(app, ["bundle", "show", "b.bundle"]).output
    assert json.loads(cli.invoke(app, ["inspect", "b.bundle", "--json"]).output) == {
        "kind": "bundle",
        **bundle.as_json(),
    }


def test_help_shows_brackets() -> None:
    assert "table [build] holds" in " ".join(
        cli.invoke(app, ["build", "--help"], env={"COLUMNS": "200"}).output.split()
    )
