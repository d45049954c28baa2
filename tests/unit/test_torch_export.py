from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import trtrun
from trtrun.building import BuildOptions, build
from trtrun.onnx_runtime import OnnxRuntimeSession


def test_a_module_needs_an_example_and_a_place(tmp_path: Path) -> None:
    class Module:
        pass

    with pytest.raises(trtrun.BuildError, match="example_inputs"):
        build(Module(), tmp_path / "m.engine")
    with pytest.raises(trtrun.BuildError, match="path of the engine"):
        build(b"")


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(trtrun.MissingPackageError, match=r"trtrun\[torch\]"):
        build(object(), tmp_path / "m.engine", example_inputs=())


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_torch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from trtrun.building.torch_export import export_module

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten()).eval()
    x = torch.randn(2, 3, 8, 8)
    session = OnnxRuntimeSession(export_module(module, (x,)))
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        (y,) = session(x.numpy()).values()
        np.testing.assert_allclose(y, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    engine = build(module, tmp_path / "m.engine", example_inputs=(x,), options=BuildOptions())
    assert trtrun.identify(engine).family == "tensorrt_rtx"

    class Bad(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("cannot be traced")

    with pytest.raises(trtrun.BuildError, match="torch cannot export Bad"):
        build(Bad(), tmp_path / "bad.engine", example_inputs=(x,))
    assert not (tmp_path / "bad.engine").exists()
