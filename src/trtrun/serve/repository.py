"""The models that are served: by name and version, loaded, replaced and unloaded while requests run."""

from __future__ import annotations

import bisect
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    BuildError,
    BundleError,
    ClosedError,
    DeviceError,
    InputError,
    ModelFileError,
    ModelNotFoundError,
    OnnxError,
    PlanError,
    PluginError,
    ServerBusyError,
    TrtrunError,
    UnsupportedTensorError,
)
from ..runner import Runner
from ..vision.task import VisionTask, task
from .batcher import Batcher, BatchOptions, Outcome, fits

_LOG = logging.getLogger("trtrun.serve")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
EXTENSIONS = [
    "binary_tensor_data",
    "cuda_shared_memory",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
    "system_shared_memory",
]
_EXACT = 1024  # rows of batches that are counted apart
# A file that cannot be loaded is its owner's mistake, and not the server's.
MODEL_ERRORS = (ModelFileError, PlanError, BundleError, OnnxError, BuildError, PluginError, UnsupportedTensorError)
SUFFIXES = (".engine", ".plan", ".trt", ".onnx", ".bundle")

Load = Callable[[Path], Runner]


# Upper bounds of the histogram of latencies, in seconds.
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass
class Statistics:
    """What one model has done since it was loaded first; times in seconds.

    Attributes:
        requests: that were taken and have ended, well or not.
        refused: that were turned away because more came than can be done.
        rows: of the requests that succeeded; Triton calls them inferences.
        queued, computed: of the requests that succeeded.
        failed: time that requests took that failed in the end.
        batches: rows -> batches of so many that ran, and the time that they took; beyond 1024 rows, those up to each
            power of two together.
        histogram: requests that succeeded within each of ``BOUNDS``, and beyond the last.
    """

    requests: int = 0
    failures: int = 0
    refused: int = 0
    rows: int = 0
    queued: float = 0.0
    computed: float = 0.0
    failed: float = 0.0
    batches: dict[int, tuple[int, float]] = field(default_factory=dict)
    histogram: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    latencies: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=2048))  # when, seconds
    last: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: Outcome) -> None:
        seconds = outcome.queued + outcome.computed
        with self._lock:
            if isinstance(outcome.error, ServerBusyError):
                self.refused += 1
                return
            self.requests += 1
            self.last = time.time()
            if outcome.error is not None:
                self.failures += 1
                self.failed += seconds
                return
            self.rows += outcome.rows
            self.queued += outcome.queued
            self.computed += outcome.computed
            self.histogram[bisect.bisect_left(BOUNDS, seconds)] += 1
            self.latencies.append((self.last, seconds))
            if outcome.first:
                rows = outcome.batch
                if rows > _EXACT:  # a model without profiles takes any number, and clients may try them all
                    rows = 1 << (rows - 1).bit_length()
                count, spent = self.batches.get(rows, (0, 0.0))
                self.batches[rows] = count + 1, spent + outcome.computed

    def recent(self, seconds: float = 10.0) -> dict[str, float]:
        """Requests per second and latency percentiles (seconds) of the last moments."""
        with self._lock:
            since = time.time() - seconds
            latencies = [latency for when, latency in self.latencies if when >= since]
        if not latencies:
            return {"rate": 0.0, "p50": 0.0, "p99": 0.0}
        p50, p99 = np.percentile(latencies, (50, 99))
        return {"rate": len(latencies) / seconds, "p50": float(p50), "p99": float(p99)}


class Model:
    """A loaded version of a model: its runner and its batcher.

    Args:
        stamp: what changes when its file is replaced.
        vision: options of :func:`trtrun.vision.task.task`: how its outputs are read.
    """

    def __init__(
        self,
        name: str,
        version: str,
        path: Path,
        stamp: Any,
        runner: Runner,
        batcher: Batcher,
        vision: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.runner = runner
        self.batcher = batcher
        self.stamp = stamp
        self._vision = vision
        self._task: VisionTask | InputError | None = None

    def task(self) -> VisionTask:
        """What reads pictures with this model. Raises InputError, with the reason, where it is no vision model."""
        if self._task is None:
            try:
                self._task = task(self.runner, **self._vision, gpu=False)  # batches of all callers form behind it
            except InputError as error:
                self._task = InputError(f"pictures cannot be sent to model {self.name!r}, tensors can: {error.message}")
        if isinstance(self._task, InputError):
            raise InputError(self._task.message)
        return self._task

    def close(self) -> None:
        """After the requests that wait and run."""
        self.batcher.close()
        self.runner.close()


@dataclass
class _Entry:
    """A name: what is served under it, if anything, and why not."""

    path: Path | None = None  # of a model that was named on the command line
    model: Model | None = None
    reason: str = ""
    unloaded: bool = False  # because somebody asked for it
    warned: bool = False  # that its config.pbtxt is not read
    statistics: Statistics = field(default_factory=Statistics)
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while it is loaded or unloaded


class Repository:
    """The models by name.

    Args:
        load: opens a model file.
        files: models by name.
        folder: a model repository as Triton has it, ``folder/NAME/VERSION/model.{engine,plan,onnx,…}``, of which the
            highest version is served; or plain files ``folder/NAME.{engine,plan,onnx,…}``.
        options: how requests are batched.
        vision: how the outputs of models of vision are read, by name, where they do not say it themselves: options
            of :func:`trtrun.vision.task.task`.
        devices: the GPUs that ``load`` uses, for the metrics.
    """

    def __init__(
        self,
        load: Load,
        files: Mapping[str, Path] | None = None,
        *,
        folder: Path | None = None,
        options: BatchOptions | None = None,
        vision: Mapping[str, Mapping[str, Any]] | None = None,
        devices: Sequence[int] = (),
    ) -> None:
        self._load = load
        self._folder = None if folder is None else folder.resolve()
        self._options = options or BatchOptions()
        self._vision = dict(vision or {})
        self.devices = tuple(devices)
        self.on_failure: Callable[[DeviceError], None] = lambda error: None  # called when a GPU has failed for good
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._reloading = threading.Lock()  # what one has loaded, the next has not to load again
        self._closed = False
        self._begun = False
        for name, path in (files or {}).items():
            check_name(name)
            self._entries[name] = _Entry(path)

    def names(self) -> list[str]:
        """All models there are, loaded or not."""
        found = set(self._entries)
        if self._folder is not None:
            with suppress(OSError):
                for path in self._folder.iterdir():
                    name = path.stem if path.suffix in SUFFIXES else path.name
                    if _NAME.fullmatch(name) and self._newest(name) is not None:
                        found.add(name)
        return sorted(found)

    def check_unambiguous(self) -> None:
        """Raise ModelFileError where a name stands for a model of the command line and for another in the folder."""
        for name, entry in self._entries.items():
            found = self._in_folder(name)
            if entry.path is not None and found is not None and entry.path.resolve() != found[1].resolve():
                raise ModelFileError(
                    f"two models are called {name!r}: {entry.path} and {found[1]}. Give the first another name: "
                    f"NAME={entry.path}."
                )

    def say_skipped(self) -> None:
        """Warn of what is no model in the folder though it looks like one, and where there is none at all.

        That is no error: SIGHUP and ``load`` find what comes later. Raises ModelFileError where it cannot be read.
        """
        if self._folder is None:
            return
        layout = f"NAME/VERSION/model.{{{','.join(suffix[1:] for suffix in SUFFIXES)}}}, or NAME.onnx and the like"
        try:
            paths = [path for path in self._folder.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise ModelFileError(f"cannot read the folder {str(self._folder)!r}: {error.strerror}.") from error
        found = {name for name in self.names() if self._in_folder(name)}
        skipped = sorted(
            path.name
            for path in paths
            if (path.name not in found if path.is_dir() else path.suffix in SUFFIXES and path.stem not in found)
        )
        if skipped:
            _LOG.warning(
                "%s: skipped %s. A model is %s (VERSION is a number; NAME has letters, digits, '_', '-' and '.'; links "
                "out of the folder are not followed)",
                self._folder,
                ", ".join(skipped),
                layout,
            )
        if not found:
            _LOG.warning(
                "there is no model in %s, so nothing is served until one is put there and loaded (SIGHUP loads all "
                "that is new). A model is %s",
                self._folder,
                layout,
            )

    def size(self) -> int:
        """Bytes of the files of all models there are."""
        found = 0
        for name in self.names():
            newest = self._newest(name)
            with suppress(OSError):
                found += 0 if newest is None else newest[1].stat().st_size
        return found

    def load_all(self, skip: Callable[[str], bool] = lambda name: False) -> list[TrtrunError]:
        """Load every model but those to ``skip``, which count as unloaded; what failed is returned, and the rest is
        served."""
        errors = []
        for name in self.names():
            if skip(name):
                entry = self._entry(name)
                entry.unloaded, entry.reason = True, "unloaded"
                continue
            try:
                self.load(name)
            except Exception as error:  # what else a library raises must not keep the others, nor go unheard
                known = error if isinstance(error, TrtrunError) else ModelFileError(f"{name}: {error!r}")
                _LOG.error("%s was not loaded: %s", name, error, exc_info=known is not error, extra={"model": name})
                errors.append(known)
        self._begun = not errors
        return errors

    def load(self, name: str) -> Model:
        """Load a model, or load it anew: requests go to the old one until the new one has run once.

        Raises ModelNotFoundError for a name that the repository does not have, and what loading raises; the old one
        stays then.
        """
        entry = self._entry(name)
        with entry.lock:
            found = self._newest(name)
            if found is None:
                raise ModelNotFoundError(f"there is no model {name!r} in the repository; it has {self.names()}.")
            version, path = found
            if self._folder is not None and entry.path is None and not entry.warned:
                self._warn(name, self._folder / name / "config.pbtxt")
                entry.warned = True
            start = time.perf_counter()
            try:
                model = self._open(name, version, path, entry.statistics)
            except Exception as error:
                if entry.model is None:
                    entry.reason = str(error)
                raise
            old, entry.model, entry.reason, entry.unloaded = entry.model, model, "", False
            _LOG.info(
                "%s version %s is ready after %.2f s: %s",
                name,
                version,
                time.perf_counter() - start,
                model.runner.backend,
                extra={"model": name},
            )
            if old is not None:
                old.close()
            self._say_task(model)
            return model

    def _open(self, name: str, version: str, path: Path, statistics: Statistics) -> Model:
        stamp = _stamp(path)  # first: a file that is replaced while it is read has changed
        runner = self._load(path)
        try:
            batcher = Batcher(runner, self._options, lambda outcome: self._note(statistics, outcome))
        except BaseException:
            runner.close()
            raise
        model = Model(name, version, path, stamp, runner, batcher, self._vision.get(name, {}))
        try:
            self._warm_up(model)
        except BaseException:
            model.close()
            raise
        return model

    def _say_task(self, model: Model) -> None:
        """Say at the start what the first picture would be told: a warning where it was said that there is a task."""
        try:
            _LOG.info("%s: pictures are read as %s", model.name, model.task().head, extra={"model": model.name})
        except InputError as error:
            meant = model.name in self._vision or model.runner.metadata.keys() & {"task", "head"}
            level = logging.WARNING if meant else logging.INFO
            _LOG.log(level, "%s", error.message, extra={"model": model.name})

    @staticmethod
    def _warn(name: str, config: Path) -> None:
        """Say once that Triton's configuration is there and counts for nothing."""
        if config.is_file():
            _LOG.warning(
                "%s: %s is not read. Batching is what the engine's profiles say, and --max-batch-size, "
                "--max-queue-delay and --instances for all models; names and shapes are the "
                "engine's; task and labels those of the model's metadata, a bundle's, or --task and --labels.",
                name,
                config,
                extra={"model": name},
            )

    def _note(self, statistics: Statistics, outcome: Outcome) -> None:
        statistics.note(outcome)
        if isinstance(outcome.error, DeviceError) and (failure := self.failure) is not None:
            self.on_failure(failure)

    @staticmethod
    def _warm_up(model: Model) -> None:
        """Run requests of zeros on every instance, one of each size of a batch, so that kernels are compiled and graphs
        captured before the first client comes."""
        inputs: dict[str, Any] = {}
        for name, spec in model.runner.inputs.items():
            if spec.location == "host" or (spec.is_dynamic and not spec.profiles and -1 in spec.shape[1:]):
                return  # nobody knows values or shapes that would do
            shape = spec.profiles[0].opt if spec.profiles else tuple(max(size, 1) for size in spec.shape)
            inputs[name] = np.zeros(shape, spec.dtype)
        shapes = {name: one.shape[1:] for name, one in inputs.items()}
        for size in (size for size in model.batcher.sizes if fits(model.runner, shapes, size)):
            some = {name: np.zeros((size, *one.shape[1:]), one.dtype) for name, one in inputs.items()}
            model.batcher.warm_up(some)
        model.batcher.warm_up(inputs)

    def reload_changed(self) -> None:
        """Load what is new or has changed on disk; what fails is logged, and the old one stays.

        What was unloaded stays so. What is no longer there is served until it is unloaded.
        """
        with self._reloading:
            for name in self.names():
                entry, found = self._entries.get(name, _Entry()), self._newest(name)
                model = entry.model
                if found is None or entry.unloaded:
                    continue
                if model is not None and found[1] == model.path and _stamp(found[1]) == model.stamp:
                    continue
                try:
                    self.load(name)
                except Exception as error:  # one model's error must not keep the others from being looked at
                    unknown = not isinstance(error, TrtrunError)
                    _LOG.error("%s was not loaded anew: %s", name, error, exc_info=unknown, extra={"model": name})

    def unload(self, name: str) -> None:
        """Take a model out, after the requests that it has. Raises ModelNotFoundError when it is not loaded."""
        entry = self._entry(name)
        with entry.lock:
            if entry.model is None:
                raise ModelNotFoundError(f"model {name!r} is not loaded.")
            model, entry.model, entry.reason, entry.unloaded = entry.model, None, "unloaded", True
            model.close()

    def get(self, name: str, version: str = "") -> Model:
        """The model that answers requests. Raises ModelNotFoundError."""
        entry = self._entries.get(name)
        model = None if entry is None else entry.model
        if model is None or version not in ("", model.version):
            why = f"version {model.version} is served" if model else entry.reason if entry else ""
            raise ModelNotFoundError(
                f"model {name!r}{f' version {version!r}' if version else ''} is not served"
                f"{f': {why}' if why else ''}. Served are {[key for key, e in list(self._entries.items()) if e.model]}."
            )
        return model

    def submit(self, name: str, version: str, inputs: Mapping[str, Any], **options: Any) -> tuple[Model, Future[Any]]:
        """Give a request to the model that answers now, the new one where it has just been replaced.

        ``options`` and errors as for :meth:`Batcher.submit`; and ModelNotFoundError.
        """
        while True:
            model = self.get(name, version)
            try:
                return model, model.batcher.submit(inputs, **options)
            except ClosedError:
                if self.get(name, version) is model:
                    raise

    def statistics(self, name: str) -> Statistics:
        self.get(name)
        return self._entries[name].statistics

    def summary(self, model: Model) -> dict[str, Any]:
        """A model's statistics as the protocol has them, and what the last moments were like."""
        found = self._entries[model.name].statistics  # of one, too, that is just being unloaded

        def duration(count: int, seconds: float) -> dict[str, int]:
            return {"count": count, "ns": int(1e9 * seconds)}

        good = found.requests - found.failures
        executions = sum(count for count, _ in found.batches.values())
        return {
            "name": model.name,
            "version": model.version,
            "last_inference": int(1e3 * found.last),
            "inference_count": found.rows,
            "execution_count": executions,
            "inference_stats": {
                "success": duration(good, found.queued + found.computed),
                "fail": duration(found.failures, found.failed),
                "queue": duration(good, found.queued),
                "compute_infer": duration(good, found.computed),
            },
            "batch_stats": [
                {"batch_size": rows, "compute_infer": duration(count, seconds)}
                for rows, (count, seconds) in sorted(found.batches.items())
            ],
            "recent": found.recent(),
            "waiting": model.batcher.waiting,
            "refused": found.refused,
        }

    def index(self) -> list[dict[str, str]]:
        """Every model with its state, as the protocol's repository extension has it."""
        rows = []
        for name in self.names():
            entry = self._entries.get(name, _Entry())
            model = entry.model
            row = {"name": name, "state": "READY" if model else "UNAVAILABLE", "reason": entry.reason}
            rows.append({**row, **({"version": model.version} if model else {})})
        return rows

    @property
    def ready(self) -> bool:
        """The models that were asked for at the start have all run, and no GPU has failed since.

        One that is unloaded later, or cannot be loaded, does not keep the others from being served: each model says of
        itself whether it is ready.
        """
        return self._begun and not self._closed and self.failure is None

    @property
    def failure(self) -> DeviceError | None:
        """What a GPU failed with, for good: CUDA does no further work in this process then."""
        failures = (model.batcher.failure for model, _ in self.loaded())
        return next((failure for failure in failures if failure is not None), None)

    def loaded(self) -> Iterable[tuple[Model, Statistics]]:
        return [(entry.model, entry.statistics) for entry in list(self._entries.values()) if entry.model is not None]

    def _entry(self, name: str) -> _Entry:
        check_name(name)
        if self._newest(name) is None and name not in self._entries:
            raise ModelNotFoundError(f"there is no model {name!r} in the repository; it has {self.names()}.")
        with self._lock:
            if self._closed:
                raise ClosedError("the server is shutting down.")
            return self._entries.setdefault(name, _Entry())

    def _newest(self, name: str) -> tuple[str, Path] | None:
        """The highest version of a model, and its file."""
        entry = self._entries.get(name)
        if entry is not None and entry.path is not None:
            return "1", entry.path
        return self._in_folder(name)

    def _in_folder(self, name: str) -> tuple[str, Path] | None:
        if self._folder is None:
            return None
        found: list[tuple[int, Path]] = []
        with suppress(OSError):
            for folder in (self._folder / name).iterdir():
                if folder.name.isdecimal() and folder.is_dir():
                    found += [(int(folder.name), p) for p in sorted(folder.glob("model.*")) if p.suffix in SUFFIXES]
        if not found:
            found = [(1, path) for suffix in SUFFIXES if (path := self._folder / f"{name}{suffix}").is_file()]
        # A link may point out of the repository, and nothing out of it is reachable.
        found = [(version, path) for version, path in found if path.resolve().is_relative_to(self._folder)]
        if not found:
            return None
        version, path = max(found, key=lambda pair: pair[0])
        return str(version), path

    def close(self) -> None:
        """Refuse new requests, run those that there are, and unload everything."""
        with self._lock:
            self._closed = True
        for entry in self._entries.values():
            with entry.lock:
                model, entry.model, entry.reason = entry.model, None, "the server is shutting down"
                if model is not None:
                    model.close()


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of two processes together, each as of :meth:`Repository.summary`: sums; of percentiles, which
    cannot be added, the larger."""
    found = dict(one)
    for key, value in other.items():
        mine = one.get(key)
        if mine is None or isinstance(mine, str):
            continue
        if isinstance(mine, dict):
            found[key] = merged(mine, value)
        elif isinstance(mine, list):
            rows = {row["batch_size"]: row for row in value}
            for row in mine:
                count, compute = row["batch_size"], row["compute_infer"]
                also = rows.get(count, {"compute_infer": {}})["compute_infer"]
                rows[count] = {"batch_size": count, "compute_infer": merged(compute, also)}
            found[key] = [rows[count] for count in sorted(rows)]
        else:
            found[key] = max(mine, value) if key in ("last_inference", "p50", "p99") else mine + value
    return found


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced."""
    with suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return 0, 0


def check_name(name: str) -> None:
    """Raise ModelNotFoundError for what is no name of a model: it becomes part of a path."""
    if not _NAME.fullmatch(name):
        raise ModelNotFoundError(f"{name!r:.100} is no name of a model: letters, digits, '_', '-' and '.'.")


def named(texts: Iterable[str]) -> dict[str, Path]:
    """``NAME=PATH`` or ``PATH`` texts as paths by name. Raises ModelFileError for folders and names given twice."""
    files: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if Path(path if equals else text).is_dir():
            raise ModelFileError(
                f"{path if equals else text!r} is a folder, and a model is a file. To serve the models in it: "
                f"--repository {path if equals else text}"
            )
        name = name if equals else re.sub(r"[^A-Za-z0-9_.-]", "_", Path(text).stem)
        check_name(name)
        if name in files:
            raise ModelFileError(f"two models are called {name!r}. Give one another name: NAME={path or text}.")
        files[name] = Path(path if equals else text)
    return files


def configuration(model: Model) -> dict[str, Any]:
    """Triton's configuration of a model; ``parameters`` name the vision task where pictures can be sent, or say
    why they cannot."""
    described, batcher = describe(model), model.batcher
    # Triton's 0: requests are not put together, and the shapes are whole ones.
    batched = batcher.max_batch_size > 1
    delay = int(1e6 * batcher.options.max_queue_delay)

    def dims(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"name": t["name"], "data_type": f"TYPE_{t['datatype']}", "dims": t["shape"][1 if batched else 0 :]}
            for t in tensors
        ]

    try:
        parameters = {"task": {"string_value": model.task().head.task}}
    except InputError as error:
        parameters = {"no_task": {"string_value": error.message}}
    return {
        "name": model.name,
        "platform": described["platform"],
        "backend": "trtrun",
        "max_batch_size": batcher.max_batch_size if batched else 0,
        "input": dims(described["inputs"]),
        "output": dims(described["outputs"]),
        **({"dynamic_batching": {"max_queue_delay_microseconds": delay}} if batched else {}),
        "instance_group": [{"count": batcher.options.instances}],
        "parameters": parameters,
    }


def describe(model: Model) -> dict[str, Any]:
    """The metadata of the protocol."""
    from .protocol import datatype

    def tensors(specs: Any) -> list[dict[str, Any]]:
        return [{"name": s.name, "datatype": datatype(s.dtype), "shape": list(s.shape)} for s in specs.values()]

    return {
        "name": model.name,
        "versions": [model.version],
        "platform": f"trtrun: {model.runner.backend}",
        "inputs": tensors(model.runner.inputs),
        "outputs": tensors(model.runner.outputs),
    }
