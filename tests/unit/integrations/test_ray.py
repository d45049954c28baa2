"""Ray Data and Ray Serve on this machine, models in ONNX Runtime."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'trtrun[ray]'")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own are many

from tests import models  # noqa: E402
from trtrun.errors import InputNameError, ModelFileError  # noqa: E402
from trtrun.integrations import ray_data, ray_serve  # noqa: E402
from trtrun.onnx_runtime import OnnxRuntimeSession  # noqa: E402

RNG = np.random.default_rng()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "affine.onnx"
    path.write_bytes(models.affine())
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray on this machine, the nodes' cache in a folder of its own, which is returned."""
    cache = tmp_path_factory.mktemp("cache")
    variables = {
        "TRTRUN_CACHE_DIR": str(cache),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "CUDA_VISIBLE_DEVICES": "",
    }
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
    )
    yield cache
    ray.shutdown()


def test_batches_of_columns(model: Path) -> None:
    """The class by itself, as an actor uses it."""
    reference = OnnxRuntimeSession(model)
    x = RNG.standard_normal((23, 12)).astype(np.float32)
    infer = ray_data.Inference(model, columns={"x": "pixels"}, keep=["id"], rows=5, depth=2)
    found = infer({"pixels": x, "id": np.arange(23), "unused": x})
    assert found.keys() == {"id", *reference.outputs}
    for name, array in reference.run({"x": x}).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["id"], np.arange(23))
    with pytest.raises(InputNameError, match=r"no column \['pixels'\].*columns="):
        infer({"image": x, "id": np.arange(23)})


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    (tmp_path / "static.onnx").write_bytes(models.static())
    reference = OnnxRuntimeSession(tmp_path / "static.onnx")
    ((name, spec),) = reference.inputs.items()
    rows = RNG.standard_normal((2 * spec.shape[0] + 1, *spec.shape[1:])).astype(spec.dtype)
    found = ray_data.Inference(tmp_path / "static.onnx", depth=1)({name: rows})
    for output, array in reference.run({name: rows[: spec.shape[0]]}).items():
        assert len(found[output]) == len(rows)
        np.testing.assert_allclose(found[output][: spec.shape[0]], array, rtol=1e-4, atol=1e-5)


def test_a_data_set(cluster: Path, model: Path) -> None:
    x = RNG.standard_normal((200, 12)).astype(np.float32)
    dataset = ray.data.from_items([{"x": row, "id": index} for index, row in enumerate(x)])
    shared = ray_data.SharedModel(model)
    found = ray_data.infer(
        dataset, shared, keep=["id"], batch_size=32, concurrency=2, num_gpus=0, depth=1, rows=8
    ).take_all()
    reference = OnnxRuntimeSession(model).run({"x": x})
    assert sorted(row["id"] for row in found) == list(range(200))
    for row in found:
        for name, array in reference.items():
            np.testing.assert_allclose(row[name], array[row["id"]], rtol=1e-4, atol=1e-5)
    (fetched,) = (cluster / "fetched").glob("*.onnx")  # by two actors, and written once
    assert fetched.read_bytes() == model.read_bytes()
    with pytest.raises(ModelFileError):
        ray_data.SharedModel(model.parent / "nowhere.onnx")


def ask(path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:18765{path}", data, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_protocol_on_ray_serve(cluster: Path, model: Path) -> None:
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": 18765})
    try:
        application = ray_serve.deployment(
            {"affine": ray_data.SharedModel(model)},
            num_gpus=0,
            batching={"max_batch_size": 8},
            limits={"max_body": 4096},
        )
        serve.run(application, name="models", route_prefix="/")
        assert ask("/v2/health/ready") == (200, {"ready": True})
        x = RNG.standard_normal((3, 12)).astype(np.float32)
        given = {"name": "x", "datatype": "FP32", "shape": [3, 12], "data": x.ravel().tolist()}
        status, answer = ask("/v2/models/affine/infer", {"inputs": [given]})
        assert status == 200, answer
        wanted = OnnxRuntimeSession(model).run({"x": x})
        for output in answer["outputs"]:
            found = np.reshape(output["data"], output["shape"])
            np.testing.assert_allclose(found, wanted[output["name"]], rtol=1e-4, atol=1e-5)
        assert ask("/v2/models/affine/config")[1]["max_batch_size"] == 8
        assert ask("/v2/models/nothing")[0] == 404
        assert ask("/v2/models/affine/infer", {"inputs": [{**given, "data": [0.0] * 5000}]})[0] == 413
    finally:
        serve.shutdown()
