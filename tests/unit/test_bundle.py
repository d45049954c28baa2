from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun.building.builder import build_plan
from trtrun.bundle import new_keys, open_bundle, write_bundle
from trtrun.cli import app
from trtrun.cuda.device import gpu_count
from trtrun.plan import header_of, identify
from trtrun.tensor_spec import TensorSpec, TensorSpecs


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    path.write_bytes(header_of({"stride": 32}) + build_plan(models.static()))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.static())
    return path


def test_there_and_back(engine: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.bundle"
    written = write_bundle(
        path, engines=[engine, (engine, "9.0")], onnx=model, metadata={"names": {"0": "猫"}}, licence="MIT"
    )
    bundle = open_bundle(path)
    assert bundle == written
    assert bundle.metadata == {"stride": 32, "names": {"0": "猫"}}
    assert [e.compute_capability for e in bundle.engines] == [None, "9.0"]
    assert bundle.engines[0].family == "tensorrt_rtx"
    plan = bundle.read(bundle.engines[0])
    assert plan == engine.read_bytes()[identify(engine.read_bytes()).offset :]
    assert bundle.onnx is not None
    assert bundle.read(bundle.onnx) == model.read_bytes()
    bundle.check()


def test_the_source_is_kept_as_name_and_hash(engine: Path, model: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    for options in ({"source": model}, {"onnx": model}):
        bundle = write_bundle(tmp_path / "m.bundle", engines=[engine], **options)
        assert (bundle.source, bundle.source_sha256) == ("m.onnx", digest)
    assert write_bundle(tmp_path / "m.bundle", engines=[engine]).source is None


def test_metadata_in_front_of_an_engine(engine: Path, tmp_path: Path) -> None:
    facts, out = tmp_path / "facts.json", tmp_path / "out.engine"
    facts.write_text(json.dumps({"names": {"0": "cat"}, "task": "detect"}))
    done = CliRunner().invoke(app, ["bundle", "header", str(engine), str(facts), str(out)])
    assert done.exit_code == 0, done.output
    before, after = identify(engine.read_bytes()), identify(out.read_bytes())
    assert after.metadata == {"names": {"0": "cat"}, "task": "detect"}
    assert out.read_bytes()[after.offset :] == engine.read_bytes()[before.offset :]
    facts.write_text("[1]")
    for command in (["header", str(engine), str(facts), str(out)], ["create", str(out), "--metadata", str(facts)]):
        done = CliRunner().invoke(app, ["bundle", *command])
        assert isinstance(done.exception, trtrun.BundleError) or "a JSON object is expected" in done.output


def yolo(size: int, classes: int = 2, told: bool = True) -> bytes:
    """A convolution as a detector of this size, with Ultralytics' metadata."""
    proto = onnx.load_from_string(models.convolution())
    for axis, length in ((0, 1), (2, size), (3, size)):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = length
    names = {index: str(index) for index in range(classes)}
    if told:
        onnx.helper.set_model_props(proto, {"task": "detect", "imgsz": str([size, size]), "names": str(names)})
    data: bytes = proto.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (yolo(64), r"imgsz is \[32, 32\] in front of the engine and \[64, 64\] in the ONNX model"),
        (yolo(32, classes=3), "2 names stand in front of the engine and 3 in the ONNX model"),
    ],
)
def test_an_engine_of_another_network_than_the_model_is_refused(other: bytes, says: str, tmp_path: Path) -> None:
    trtrun.build(yolo(32), tmp_path / "m.engine")
    (tmp_path / "m.onnx").write_bytes(yolo(32))
    plan = (tmp_path / "m.engine").read_bytes()
    as_text = header_of({"imgsz": "[32, 32]", "names": "{0: 'a', 1: 'b'}"}) + plan[identify(plan).offset :]
    (tmp_path / "text.engine").write_bytes(as_text)
    write_bundle(tmp_path / "m.bundle", engines=[tmp_path / "text.engine"], onnx=tmp_path / "m.onnx")
    bundle = write_bundle(tmp_path / "m.bundle", engines=[tmp_path / "m.engine"], onnx=tmp_path / "m.onnx")
    assert bundle.metadata == {"task": "detect", "imgsz": [32, 32], "names": {"0": "0", "1": "1"}}
    (tmp_path / "m.onnx").write_bytes(other)
    before = (tmp_path / "m.bundle").read_bytes()
    with pytest.raises(trtrun.BundleError, match=f"are not the same network: {says}"):
        write_bundle(tmp_path / "m.bundle", engines=[tmp_path / "m.engine"], onnx=tmp_path / "m.onnx")
    assert (tmp_path / "m.bundle").read_bytes() == before


def test_engines_of_two_networks_are_refused_where_no_model_tells(tmp_path: Path) -> None:
    """Else the last one's names would be those of the first, which is the one that runs."""
    engines = [tmp_path / "two.engine", tmp_path / "three.engine", tmp_path / "larger.engine"]
    for path, onnx_model in zip(engines, (yolo(32), yolo(32, classes=3), yolo(64)), strict=True):
        trtrun.build(onnx_model, path)
    with pytest.raises(trtrun.BundleError, match=r"three.engine and the engines before it .*: 3 names .* and 2 in"):
        write_bundle(tmp_path / "m.bundle", engines=engines[:2])
    (tmp_path / "silent.onnx").write_bytes(yolo(32, told=False))
    with pytest.raises(trtrun.BundleError, match=r"three.engine and the engines before it"):
        write_bundle(tmp_path / "m.bundle", engines=engines[:2], onnx=tmp_path / "silent.onnx")
    assert not (tmp_path / "m.bundle").exists()
    assert len(write_bundle(tmp_path / "m.bundle", engines=engines[::2]).engines) == 2  # of other sizes


def spec(name: str, shape: tuple[int, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([spec("x", (1, 3, 32, 32))], [spec("y", (1, 8, 32, 32)), spec("pooled", (1, 8))], None),
        ([spec("x", (-1, 3, -1, -1))], [spec("y", (-1, 8, -1, -1)), spec("pooled", (-1, 8))], None),
        ([spec("x", (1, 3, 32, 32), "float16")], [spec("y", (1, 8, 32, 32), "float16"), spec("pooled", (1, 8))], None),
        ([], [spec("y", (1, 8, 32, 32)), spec("pooled", (1, 8))], None),  # an input that nothing reads
        (
            [spec("x", (1, 3, 64, 64))],
            [spec("y", (1, 8, 64, 64)), spec("pooled", (1, 8))],
            "input 'x' is float32 1×3×64×64 in the engine and float32 1×3×32×32 in the ONNX model",
        ),
        (
            [spec("x", (1, 3, 32, 32), "int8")],
            [spec("y", (1, 8, 32, 32)), spec("pooled", (1, 8, 1))],
            "input 'x' is int8 1×3×32×32 in the engine and .* output 'pooled' is float32 1×8×1 in the engine",
        ),
        (
            [spec("images", (1, 3, 32, 32))],
            [spec("y", (1, 8, 32, 32))],
            r"has the input 'images', the ONNX model has \['x'\]; the engine has no output 'pooled'",
        ),
    ],
)
def test_an_engine_that_is_loaded_must_have_the_models_inputs_and_outputs(
    inputs: list[TensorSpec], outputs: list[TensorSpec], says: str | None, tmp_path: Path
) -> None:
    """What load() calls with the specs of the engine, on a machine with a GPU."""
    trtrun.build(yolo(32, told=False), tmp_path / "m.engine")
    (tmp_path / "m.onnx").write_bytes(yolo(32, told=False))
    write_bundle(tmp_path / "m.bundle", engines=[tmp_path / "m.engine"], onnx=tmp_path / "m.onnx")
    bundle = open_bundle(tmp_path / "m.bundle")
    assert bundle.interface is not None
    assert [str(tensor) for tensor in bundle.interface.inputs] == ["x: float32 1×3×32×32"]
    shown = CliRunner().invoke(app, ["bundle", "show", str(bundle.path)]).output
    assert "x: float32 1×3×32×32" in shown
    if says is None:
        bundle.check_interface(bundle.engines[0], TensorSpecs(inputs), TensorSpecs(outputs))
        return
    with pytest.raises(trtrun.BundleError, match=says):
        bundle.check_interface(bundle.engines[0], TensorSpecs(inputs), TensorSpecs(outputs))


@pytest.mark.skipif(gpu_count() > 0, reason="a GPU would run the engine")
def test_load_runs_the_model_inside_where_no_engine_can(
    engine: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.bundle"
    write_bundle(path, engines=[engine], onnx=model, metadata={"task": "classify"})
    x = np.ones((3, 12), np.float32)
    with trtrun.load(path) as runner:
        assert runner.metadata["task"] == "classify"
        np.testing.assert_array_equal(runner(x)["y"], trtrun.OnnxRuntimeSession(model)(x)["y"])
    assert "its ONNX model is used, because no engine fits" in caplog.text
    write_bundle(path, engines=[engine])
    with pytest.raises(trtrun.BundleError, match="holds no ONNX model"):
        trtrun.load(path)


def test_every_changed_byte_is_noticed(engine: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.bundle"
    write_bundle(path, engines=[engine], onnx=model)
    data = path.read_bytes()
    rng = np.random.default_rng(5)
    missed = []
    for position in rng.integers(0, len(data), 300):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            open_bundle(path).check()
        except trtrun.BundleError:
            continue
        missed.append(int(position))
    # What is left are bytes of the archive's own records that say nothing of the contents: dates, attributes.
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        spans = [(i.header_offset + 30 + len(i.filename), i.file_size) for i in archive.infolist()]
    assert not [p for p in missed for start, size in spans if start <= p < start + size]
    for end in (0, 10, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(trtrun.BundleError):
            open_bundle(path).check()


def test_what_changes_after_it_was_checked_is_noticed_when_it_is_read(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtrun.bundle.PIECE", 1000)
    path = tmp_path / "m.bundle"
    bundle = write_bundle(path, engines=[engine])
    plan = engine.read_bytes()
    plan = plan[identify(plan).offset :]
    member = bundle.open(bundle.engines[0])
    assert len(member) == len(plan)
    for start, stop in ((0, 10), (990, 1010), (1000, 3000), (len(plan) - 5, len(plan) + 5), (7, 7), (0, len(plan))):
        assert member[start:stop] == plan[start:stop]
    data = bytearray(path.read_bytes())
    data[data.index(plan) + 1500] ^= 1
    path.write_bytes(data)
    assert member[:1000] == plan[:1000]
    with pytest.raises(trtrun.BundleError, match="SHA-256 differs"):
        member[999:1001]
    path.write_bytes(data[:100])
    with pytest.raises(trtrun.ModelFileError, match="cut short"):
        member[:1]


def test_signatures(engine: Path, tmp_path: Path) -> None:
    path, key, other = tmp_path / "m.bundle", new_keys(), new_keys()
    write_bundle(path, engines=[engine], private_key=key[0])
    bundle = open_bundle(path)
    bundle.check_signature(key[1])
    with pytest.raises(trtrun.BundleError, match="signed with another key"):
        bundle.check_signature(other[1])
    with pytest.raises(trtrun.BundleError, match="not an Ed25519 public key"):
        bundle.check_signature(b"no key")
    # Somebody who changes the manifest, hashes and all, cannot sign it.
    with zipfile.ZipFile(path) as archive:
        contents = {i.filename: archive.read(i) for i in archive.infolist()}
    manifest = json.loads(contents["manifest.json"])
    manifest["name"] = "other"
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in {**contents, "manifest.json": json.dumps(manifest)}.items():
            archive.writestr(name, body)
    changed = open_bundle(path)
    changed.check()
    with pytest.raises(trtrun.BundleError, match="signed with another key"):
        changed.check_signature(key[1])
    public = tmp_path / "key.pem"
    public.write_bytes(key[1])
    with pytest.raises(trtrun.BundleError, match="signed with another key"):
        trtrun.load(path, trusted_key=public)
    with pytest.raises(trtrun.BundleError, match="Ed25519 private key"):
        write_bundle(path, engines=[engine], private_key=b"no key")
    write_bundle(path, engines=[engine])
    with pytest.raises(trtrun.BundleError, match="not signed"):
        open_bundle(path).check_signature(key[1])


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"[]", "damaged"),
        (b"{}", "has the format None"),
        (b'{"format": "trtrun bundle 9"}', "'trtrun bundle 9'"),
        (b'{"format": "trtrun bundle 1"}', "damaged"),
        (b'{"format": "trtrun bundle 1", "name": "x", "engines": [{"file": 1}]}', "damaged"),
        (b"{" * 100_000, "damaged"),
        (b"\xff", "damaged"),
    ],
)
def test_manifests_that_make_no_sense(manifest: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bundle"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", manifest)
    with pytest.raises(trtrun.BundleError, match=said):
        trtrun.load(path)


def test_members_that_are_compressed_or_missing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bundle"
    entry = {"file": "big", "bytes": 1 << 30, "sha256": "0" * 64, "family": "tensorrt_rtx", "version": "1.6.1.120"}
    manifest = {"format": "trtrun bundle 1", "name": "x", "engines": [entry]}
    for write in (lambda archive: archive.writestr("big", bytes(1 << 20)), lambda archive: None):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("manifest.json", json.dumps(manifest))
            write(archive)
        with pytest.raises(trtrun.BundleError):
            open_bundle(path).check()


def test_what_cannot_be_bundled(model: Path, tmp_path: Path) -> None:
    with pytest.raises(trtrun.BundleError, match="needs an engine"):
        write_bundle(tmp_path / "m.bundle")
    with pytest.raises(trtrun.PlanError):
        write_bundle(tmp_path / "m.bundle", engines=[model])
    with pytest.raises(trtrun.BundleError, match=r"holds half a character of UTF-16 \('.ud83d'\)"):
        write_bundle(tmp_path / "m.bundle", onnx=model, metadata={"names": {"0": "a \ud83d"}})
    with pytest.raises(trtrun.BundleError, match="no JSON"):
        write_bundle(tmp_path / "m.bundle", onnx=model, metadata={"mean": np.float32(1)})
    with pytest.raises(trtrun.ModelFileError):
        trtrun.load(tmp_path / "missing.bundle")
    assert not list(tmp_path.glob("*.bundle"))


def test_the_commands(engine: Path, model: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    bundle, labels = str(tmp_path / "m.bundle"), tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    private, public = str(tmp_path / "private.pem"), str(tmp_path / "public.pem")
    assert run(app, ["bundle", "keygen", private, public]).exit_code == 0
    assert Path(private).stat().st_mode & 0o77 == 0
    options = f"--engine {engine}@9.0 --onnx {model} --labels {labels} --task classify --licence MIT --key {private}"
    done = run(app, ["bundle", "create", bundle, *options.split()])
    assert done.exit_code == 0, done.output
    shown = json.loads(run(app, ["bundle", "show", bundle, "--json"]).output)
    assert shown["metadata"] == {"stride": 32, "names": {"0": "cat", "1": "dog"}, "task": "classify"}
    assert shown["signed"]
    assert shown["engines"][0]["compute_capability"] == "9.0"
    assert "signed with this key" in run(app, ["bundle", "verify", bundle, "--key", public]).output
    assert isinstance(run(app, ["bundle", "verify", str(model)]).exception, trtrun.BundleError)
    misspelt = run(app, ["bundle", "create", bundle, "--onnx", str(model), "--task", "detct"]).exception
    assert "there is no task 'detct'. Known: detect" in str(misspelt)


def test_flipped_bits_are_found_or_change_nothing(engine: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.bundle"
    good = write_bundle(path, engines=[engine], onnx=model)
    data = path.read_bytes()
    plan = good.read(good.engines[0])
    start = data.index(plan)
    positions = [*range(start + 8), *range(start + len(plan) - 8, len(data))]
    found = 0
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            opened = open_bundle(path)
            opened.check()
        except trtrun.BundleError:
            found += 1
        else:
            assert opened.read(opened.engines[0]) == plan
    assert found > 0.7 * len(positions)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3}, {"licence": 5}, {"created": [1]}, {"metadata": []}, {"accuracy": "good"}, {"engines": {}},
        {"engines": [3]}, {"onnx": [1]}, {"source": {}}, {"bytes": "5"}, {"bytes": True}, {"version": "a.b"},
        {"version": 1}, {"family": None}, {"family": "other"}, {"file": 7}, {"sha256": 1}, {"compute_capability": 9},
        {"interface": []}, {"interface": {"inputs": []}}, {"interface": {"inputs": [3], "outputs": []}},
        {"interface": {"inputs": [{"name": "x", "dtype": None, "shape": ["a"]}], "outputs": []}},
        {"interface": {"inputs": [{"name": "x", "dtype": None, "shape": [True]}], "outputs": []}},
        {"interface": {"inputs": [{"name": "x", "dtype": 5, "shape": [1]}], "outputs": []}},
    ],
)  # fmt: skip
def test_a_manifest_of_wrong_types_is_refused(engine: Path, tmp_path: Path, changes: dict) -> None:
    path = tmp_path / "m.bundle"
    write_bundle(path, engines=[engine])
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        rest = {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}
    place = manifest if changes.keys() <= manifest.keys() else manifest["engines"][0]
    place.update(changes)
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in {"manifest.json": json.dumps(manifest), **rest}.items():
            archive.writestr(name, body)
    with pytest.raises(trtrun.BundleError, match="damaged"):
        open_bundle(path)
