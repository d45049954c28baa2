"""Measuring contenders in turns, and the file that keeps the figures."""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Record:
    """One comparison. ``ratio`` is better when larger: reference / ours for times, ours / reference for rates."""

    id: str
    ours: float
    reference: float
    unit: str
    ratio: float
    spread: tuple[float, float]  # smallest and largest ratio of the rounds
    what: str
    difference: float | None = None  # ours - reference, where it is the difference that has a limit


def in_turns(
    contenders: dict[str, Callable[[], object]], *, rounds: int = 9, calls: int = 100
) -> dict[str, list[float]]:
    """Median seconds per call of each contender in each round.

    All run in every round, so that drift hits all, in the reverse order every other time: what one leaves in the caches
    is there for the next.
    """
    for call in contenders.values():
        for _ in range(min(20, calls)):
            call()
    medians: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, call in reversed(contenders.items()) if turn % 2 else contenders.items():
            for _ in range(min(5, calls)):
                call()
            times = []
            for _ in range(calls):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            medians[name].append(statistics.median(times))
    return medians


def threaded(infer: Sequence[Callable[[dict[str, Any]], object]], inputs: Sequence[Any], seconds: float) -> float:
    """Requests per second of several threads, one per callable, over inputs ``images`` that take turns."""
    counts = [0] * len(infer)
    start = time.perf_counter()

    def work(index: int) -> None:
        turn = itertools.cycle(inputs)
        while time.perf_counter() - start < seconds:
            infer[index]({"images": next(turn)})
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(infer))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def keep_fastest(times: dict[str, list[float]], name: str, ways: Sequence[str]) -> str | None:
    """Leave of these ways the fastest by its median, as ``name``. Returns which it was; None where there is none."""
    best = min(ways, key=lambda way: statistics.median(times[way]), default=None)
    kept = {way: times.pop(way) for way in ways}
    if best is not None:
        times[name] = kept[best]
    return best


def compare_times(id: str, what: str, ours: Sequence[float], reference: Sequence[float]) -> Record:
    """A record from the per-round medians (seconds) of two contenders that ran in turns."""
    ratios = [r / o for o, r in zip(ours, reference, strict=True)]
    return Record(
        id,
        round(statistics.median(ours) * 1e6, 2),
        round(statistics.median(reference) * 1e6, 2),
        "µs",
        round(statistics.median(ratios), 4),
        (round(min(ratios), 4), round(max(ratios), 4)),
        what,
    )


def compare_rates(
    id: str, what: str, ours: Sequence[float], reference: Sequence[float], unit: str = "images/s"
) -> Record:
    ratios = [o / r for o, r in zip(ours, reference, strict=True)]
    return Record(
        id,
        round(statistics.median(ours), 1),
        round(statistics.median(reference), 1),
        unit,
        round(statistics.median(ratios), 4),
        (round(min(ratios), 4), round(max(ratios), 4)),
        what,
    )


def environment() -> dict[str, object]:
    """What figures depend on beside the code that is measured."""
    import trtrun
    from trtrun import flavor
    from trtrun.cuda.device import Device

    device = Device()
    return {
        "gpu": device.name,
        "driver": f"CUDA {device.driver_version}",
        "tensorrt": flavor.load("tensorrt_rtx").title,
        "trtrun": trtrun.__version__,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


Group = Callable[..., Iterable[Record]]


def run_groups(groups: Mapping[str, Group], names: Sequence[str], environment: dict[str, object] | None) -> int:
    """Measure the named groups, or all; each record is stored as soon as it is there, unless there is no environment.

    ``GROUP:TEXT`` gives a group the text as its argument. A group that fails does not keep the others from running; one
    that needs a package that is not installed is left out, aloud. Returns the exit status: 1 when one failed.
    """
    status = 0
    for name in names or list(groups):
        print(name, flush=True)
        start = time.perf_counter()
        group, _, only = name.partition(":")
        try:
            for record in groups[group](only) if only else groups[group]():
                low, high = record.spread
                print(
                    f"  {record.id}: {record.ratio:.3f} ({low:.3f}–{high:.3f})  "
                    f"{record.ours} / {record.reference} {record.unit}",
                    flush=True,
                )
                if environment is not None:
                    store([record], environment)
        except ModuleNotFoundError as error:
            print(f"  {name} is left out: {error}", file=sys.stderr, flush=True)
        except Exception:
            status = 1
            print(f"  {name} failed: {traceback.format_exc()}", file=sys.stderr, flush=True)
        print(f"  [{time.perf_counter() - start:.0f} s]", flush=True)
    return status


def store(records: Sequence[Record], environment: dict[str, object]) -> Path:
    """Merge records into benchmarks/results/<gpu>.json by id."""
    name = re.sub(r"[^a-z0-9]+", "-", str(environment["gpu"]).lower().replace("nvidia ", "")).strip("-")
    path = FOLDER / f"{name}.json"
    kept = {r["id"]: r for r in json.loads(path.read_text())["records"]} if path.exists() else {}
    for record in records:
        kept[record.id] = {key: value for key, value in asdict(record).items() if value is not None}
        kept[record.id]["date"] = environment["date"]
    path.write_text(
        json.dumps(
            {"environment": environment, "records": [kept[i] for i in sorted(kept)]}, indent=1, ensure_ascii=False
        )
        + "\n"
    )
    return path
