"""Running the groups of a benchmark and storing what they measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import Record, compare_rates, compare_times, keep_fastest, run_groups, threaded

ENVIRONMENT = {"gpu": "NVIDIA H200", "date": "2026-11-29"}


def record(id: str, **more: float) -> Record:
    return Record(id, 1.0, 2.0, "µs", 2.0, (1.9, 2.1), "what", **more)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path / "h200.json"


def test_a_group_that_fails_loses_nothing(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def good(only: str = "all") -> Iterator[Record]:
        yield record(f"good.{only}", difference=3.5)

    def half() -> Iterator[Record]:
        yield record("half")
        raise AssertionError("beyond the limit")

    def absent() -> Iterator[Record]:
        import no_such_package  # noqa: F401

        yield record("absent")

    groups = {"half": half, "absent": absent, "good": good}
    assert run_groups(groups, [], ENVIRONMENT) == 1
    data = json.loads(stored.read_text())
    assert [r["id"] for r in data["records"]] == ["good.all", "half"]
    assert data["records"][0]["difference"] == 3.5
    assert "difference" not in data["records"][1]
    assert [r["date"] for r in data["records"]] == [ENVIRONMENT["date"]] * 2
    said = capsys.readouterr()
    assert "half failed" in said.err
    assert "beyond the limit" in said.err
    assert "absent is left out" in said.err
    assert "good.all: 2.000 (1.900–2.100)  1.0 / 2.0 µs" in said.out

    assert run_groups(groups, ["good:small", "absent"], ENVIRONMENT) == 0
    assert [r["id"] for r in json.loads(stored.read_text())["records"]] == ["good.all", "good.small", "half"]
    assert run_groups(groups, ["no_such_group"], None) == 1


def test_ratios_are_better_when_larger() -> None:
    assert compare_times("a", "", [1.0, 1.0, 2.0], [2.0, 3.0, 2.0]).ratio == 2.0
    assert compare_rates("a", "", [2.0, 3.0, 2.0], [1.0, 1.0, 2.0]).ratio == 2.0


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({"ort": [3.0, 1.0, 3.0], "ort_graph": [2.0, 2.0, 9.0]}, "ort_graph"),
        ({"ort": [1.0, 1.0, 9.0], "ort_graph": [2.0, 2.0, 2.0]}, "ort"),
        ({"ort_graph": [2.0]}, "ort_graph"),  # the other mode did not run
        ({}, None),
    ],
)
def test_of_a_peers_modes_the_fastest_counts(times: dict[str, list[float]], best: str | None) -> None:
    wanted = {"ours": [1.0], **({"ort": times[best]} if best else {})}
    times = {"ours": [1.0], **times}
    modes = [way for way in ("ort", "ort_graph") if way in times]
    assert keep_fastest(times, "ort", modes) == best
    assert times == wanted


def test_requests_of_threads_are_counted_together() -> None:
    counts = [0, 0]

    def counting(index: int):
        def infer(arrays: dict[str, int]) -> None:
            assert arrays["images"] in (7, 8)
            counts[index] += 1

        return infer

    rate = threaded([counting(0), counting(1)], [7, 8], 0.05)
    assert rate == pytest.approx(sum(counts) / 0.05, rel=0.5)
    assert min(counts) > 0
