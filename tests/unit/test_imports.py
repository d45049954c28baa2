from __future__ import annotations

import subprocess
import sys

import trtrun

HEAVY = (
    "numpy",
    "cuda",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_lean",
    "tensorrt_dispatch",
    "onnx",
    "onnxruntime",
    "cv2",
)


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running this code."""
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_import_loads_neither_gpu_libraries_nor_optional_ones() -> None:
    assert not loaded_after("import trtrun; trtrun.PlanError; dir(trtrun)").intersection(HEAVY)


def test_help_loads_neither_gpu_libraries_nor_optional_ones() -> None:
    heavy = loaded_after("import trtrun.cli").intersection(HEAVY)
    assert not heavy


def test_identifying_a_plan_loads_no_tensorrt() -> None:
    code = "import trtrun\ntry: trtrun.identify('/nonexistent')\nexcept trtrun.ModelFileError: pass"
    assert not loaded_after(code).intersection(HEAVY)


def test_public_names_are_sorted_and_resolve() -> None:
    assert trtrun.__all__ == sorted(trtrun.__all__)
    for name in trtrun.__all__:
        assert getattr(trtrun, name) is not None
    assert dir(trtrun) == trtrun.__all__  # and not what this file imports
