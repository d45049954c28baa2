"""ONNX's own backend node tests through ``trtrun.load``: every model runs right, or is refused with a reason.

    python benchmarks/onnx_conformance.py [--build-only] [--jobs N] [NAME…]

Each test runs in a child process, because a model can bring TensorRT itself down: that is reported, and the rest goes
on. ``passed``: every output of every data set agrees in each of three runs. ``refused``: TensorRT's parser or builder
said no, or ONNX types have no tensor, and its message is kept; or trtrun said no, because TensorRT would abort or
answer wrongly: ``by`` says who. ``failed``: a wrong answer, a crash, or an error that trtrun did not type.

Integers and booleans must be equal, in value and in dtype. Floating-point outputs may differ by 2e-3 (relative, L2),
those of models in bfloat16 by 8e-3: TensorRT multiplies fp32 in TF32. It has no float64 and imports such inputs as
float32, so they are converted before, as trtrun's error asks for. Of the Bernoulli tests, whose expected values are
one generator's, only shape and dtype count.

``--build-only`` stops after the builder, on a machine without a GPU. Engines and kernels are cached in a folder of the
run's own. Results go to benchmarks/results/onnx_conformance.json; those of a run with names take the place of theirs
there, with the environment where it is another.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "onnx_conformance.json"
TOLERANCE = 2e-3
BFLOAT16_TOLERANCE = 8e-3  # its last place is 2^-8
TIMEOUT = 30.0  # seconds that one test may take


def cases() -> dict[str, Any]:
    from onnx.backend.test.loader import load_model_tests

    return {case.name: case for case in load_model_tests(kind="node")}


def worker(build_only: bool) -> None:
    """Read test names from stdin, write one line of JSON for each to the real stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    known = cases()
    for line in sys.stdin:
        start = time.perf_counter()
        answer = run_case(known[line.strip()], build_only)
        answer["seconds"] = round(time.perf_counter() - start, 3)
        print(json.dumps(answer), file=answers, flush=True)


def run_case(case: Any, build_only: bool) -> dict[str, Any]:
    import onnx

    import trtrun

    model = case.model or onnx.load(os.path.join(case.model_dir, "model.onnx"))
    operators = sorted({node.op_type for node in model.graph.node})
    answer: dict[str, Any] = {"name": case.name, "operators": operators}
    refusals = (trtrun.OnnxError, trtrun.BuildError, trtrun.UnsupportedTensorError)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"{case.name}.onnx")
        onnx.save(model, path)
        try:
            if build_only:
                trtrun.build(path)
                return {**answer, "result": "built"}
            with trtrun.load(path) as runner:
                return {**answer, **compare(runner, case, model)}
        except refusals as error:
            by = "TensorRT" if error.log else "trtrun"
            return {**answer, "result": "refused", "by": by, "reason": reason(error)}
        except Exception as error:
            return {**answer, "result": "failed", "reason": f"{type(error).__name__}: {error}"[:600]}


def reason(error: Any) -> str:
    """TensorRT's own words where it said something."""
    text = error.log[-1] if error.log else str(error)
    return f"{type(error).__name__}: {text}"[:600]


def compare(runner: Any, case: Any, model: Any) -> dict[str, Any]:
    import numpy as np
    from onnx import numpy_helper

    worst = 0.0
    bfloat16 = any(v.type.tensor_type.elem_type == 16 for v in (*model.graph.input, *model.graph.output))
    sets = case.data_sets or list(stored_sets(case.model_dir, model))
    if not sets:
        return {"result": "failed", "reason": "the test has no data"}
    for inputs, outputs in sets:
        arrays = [numpy_helper.to_array(x) if hasattr(x, "raw_data") else x for x in inputs]
        names = [value.name for value in model.graph.input]
        feeds = {name: array for name, array in zip(names, arrays, strict=False) if name in runner.inputs}
        for name, array in feeds.items():
            if np.asarray(array).dtype == np.float64:
                feeds[name] = np.asarray(array).astype(runner.inputs[name].dtype)
        for run in ("the common context", "a context of its own", "the graph"):
            actual = runner.run(feeds)
            for value, wanted in zip(model.graph.output, outputs, strict=True):
                wanted = np.asarray(numpy_helper.to_array(wanted) if hasattr(wanted, "raw_data") else wanted)
                wrong, error = check(actual[value.name], wanted, value_free="bernoulli" in case.name)
                if wrong or not error <= (BFLOAT16_TOLERANCE if bfloat16 else TOLERANCE):
                    reason = wrong or f"differs by {error:.3g}"
                    return {"result": "failed", "reason": f"{value.name}, in {run}: {reason}"}
                worst = max(worst, error)
    return {"result": "passed", "error": worst}


def check(got: Any, wanted: Any, *, value_free: bool = False) -> tuple[str, float]:
    """What is wrong with an output beside its values, or "", and by how much these differ."""
    if got.shape != wanted.shape:
        return f"shape {got.shape}, wanted {wanted.shape}", 0.0
    if got.dtype != wanted.dtype and is_exact(wanted.dtype):
        return f"dtype {got.dtype}, wanted {wanted.dtype}", 0.0
    return "", 0.0 if value_free else difference(got, wanted)


def is_exact(dtype: Any) -> bool:
    """True for booleans and integers, those of ml_dtypes too."""
    return bool(dtype.kind in "iub" or dtype.name.lstrip("u").startswith("int"))


def stored_sets(folder: str, model: Any) -> Any:
    import glob

    from onnx import TensorProto

    def load(path: str) -> Any:
        proto = TensorProto()
        proto.ParseFromString(Path(path).read_bytes())
        return proto

    for each in sorted(glob.glob(os.path.join(folder, "test_data_set_*"))):
        yield tuple(
            [load(os.path.join(each, f"{kind}_{i}.pb")) for i in range(len(values))]
            for kind, values in (("input", model.graph.input), ("output", model.graph.output))
        )


def difference(got: Any, wanted: Any) -> float:
    """Relative L2 error of floating-point outputs, where NaN and infinities must be the same; else 0 or infinity."""
    import numpy as np

    if is_exact(wanted.dtype):
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(np.where(finite, 0, got), np.where(finite, 0, wanted), equal_nan=True):
        return float("inf")
    got, wanted = got[finite], wanted[finite]
    return float(np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-6))


class Child:
    """A worker process that is replaced when it dies."""

    def __init__(self, arguments: list[str]) -> None:
        self._command = [sys.executable, __file__, "--worker", *arguments]
        self._process: subprocess.Popen[str] | None = None
        self._last: dict[str, Any] | None = None  # the answer that this process gave last

    def ask(self, name: str) -> dict[str, Any]:
        """The answer to a test. One who has died is not asked: the test before is to blame, and another is asked."""
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
        except OSError:
            reason = self._died() or "the process ended"
            if self._last is None:  # it never came to a test, and the next would not either
                return {"name": name, "operators": [], "result": "failed", "reason": reason}
            self._last.update(result="failed", reason=f"after its answer {reason}")
            return self.ask(name)
        ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
        line = process.stdout.readline() if ready else ""
        if line:
            self._last = json.loads(line)
            assert self._last is not None
            return self._last
        died = self._died()
        why = (died or "the process ended") if ready else f"no answer within {TIMEOUT:.0f} s"
        return {"name": name, "operators": [], "result": "failed", "reason": why}

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._last = None
            self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1
            )
        return self._process

    def _died(self, patience: float = 2) -> str:
        """End the process, and say how it ended and what it said last."""
        process, self._process = self._process, None
        assert process is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)  # one whose output is closed is dying, and its own exit status says of what
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what it was not asked any more
                pipe.close()
        self._log.seek(0)
        said = self._log.read()[-300:]
        self._log.close()
        return f"the process died ({code}): {said}" if code else ""

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            died = self._died(patience=30)
            if died and self._last is not None:
                self._last.update(result="failed", reason=f"after its answer {died}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.build_only)
        return 0
    names = options.names or sorted(cases())
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        todo.put(name)
    answers: list[dict[str, Any]] = []
    start = time.perf_counter()

    def drive() -> None:
        child = Child(["--build-only"] if options.build_only else [])
        while True:
            try:
                name = todo.get_nowait()
            except queue.Empty:
                break
            answers.append(child.ask(name))
            if len(answers) % 100 == 0:
                print(f"{len(answers)} of {len(names)}, {time.perf_counter() - start:.0f} s", flush=True)
        child.close()

    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRTRUN_CACHE_DIR"] = cache
        threads = [threading.Thread(target=drive) for _ in range(options.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(str(answer["name"]) for answer in answers) == sorted(names), "tests were lost"
    answers.sort(key=lambda answer: str(answer["name"]))
    spent = {str(answer["name"]): float(answer.pop("seconds", TIMEOUT)) for answer in answers}
    slowest = sorted(spent, key=lambda name: -spent[name])[:8]
    print(f"{time.perf_counter() - start:.0f} s with {options.jobs} jobs, {sum(spent.values()):.0f} s inside the tests")
    print("the slowest: " + ", ".join(f"{name} {spent[name]:.1f} s" for name in slowest))
    counts = Counter(str(answer["result"]) for answer in answers)
    print(dict(counts))
    for answer in answers:
        if answer["result"] == "failed":
            print(f"FAILED {answer['name']}: {answer['reason']}")
    if not options.build_only:
        before = json.loads(RESULTS.read_text()) if options.names and RESULTS.exists() else None
        RESULTS.write_text(json.dumps(summary(answers, before, environment()), indent=1) + "\n")
    return 1 if counts["failed"] else 0


def environment() -> dict[str, str]:
    import onnx

    from trtrun import flavor
    from trtrun.cuda.device import Device

    return {
        "gpu": Device().name,
        "tensorrt": flavor.load("tensorrt_rtx").title,
        "onnx": onnx.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def summary(
    answers: list[dict[str, Any]], before: dict[str, Any] | None, environment: dict[str, str]
) -> dict[str, Any]:
    """The results to store; those of a run of some tests take the place of what they were ``before``."""
    import onnx

    tests = {str(a["name"]): {k: v for k, v in a.items() if k not in ("name", "operators")} for a in answers}
    if before is not None:
        if environment != before["environment"]:
            tests = {name: {**test, "environment": environment} for name, test in tests.items()}
        tests, environment = {**before["tests"], **tests}, before["environment"]
    operators: dict[str, Counter[str]] = defaultdict(Counter)
    for name, case in cases().items():
        if name in tests:
            model = case.model or onnx.load(os.path.join(case.model_dir, "model.onnx"))
            for operator in {node.op_type for node in model.graph.node}:
                operators[operator][tests[name]["result"]] += 1
    counts = Counter(test["result"] for test in tests.values())
    refused_by = Counter(test["by"] for test in tests.values() if test["result"] == "refused")
    return {
        "environment": environment,
        "tolerance": TOLERANCE,
        **{result: counts[result] for result in ("passed", "failed", "refused")},
        "refused_by": {who: refused_by[who] for who in ("TensorRT", "trtrun")},
        "operators": {name: dict(results) for name, results in sorted(operators.items())},
        "tests": dict(sorted(tests.items())),
    }


if __name__ == "__main__":
    sys.exit(main())
