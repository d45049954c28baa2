"""Prometheus metrics, read from the statistics when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .repository import Repository

_LABELS = ("model", "version")


class _Collector:
    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Any]:
        counters = {
            "requests": CounterMetricFamily("trtrun_requests", "Requests that ended, well or not.", labels=_LABELS),
            "failures": CounterMetricFamily("trtrun_failures", "Requests that failed.", labels=_LABELS),
            "queued": CounterMetricFamily(
                "trtrun_queue_seconds", "Time that requests waited, all together.", labels=_LABELS
            ),
            "computed": CounterMetricFamily(
                "trtrun_compute_seconds", "Time that requests ran, all together.", labels=_LABELS
            ),
        }
        batches = CounterMetricFamily(
            "trtrun_batched_requests", "Requests by the rows that ran together.", labels=(*_LABELS, "rows")
        )
        waiting = GaugeMetricFamily("trtrun_waiting_requests", "Requests in the queue.", labels=_LABELS)
        memory = GaugeMetricFamily(
            "trtrun_memory_bytes", "Buffers of the model's sessions.", labels=(*_LABELS, "location")
        )
        for model, statistics in self._repository.loaded():
            labels = (model.name, model.version)
            for name, counter in counters.items():
                counter.add_metric(labels, getattr(statistics, name))
            for rows, count in sorted(statistics.batches.items()):
                batches.add_metric((*labels, str(rows)), count)
            waiting.add_metric(labels, model.batcher.waiting)
            for location, nbytes in model.batcher.memory.items():
                memory.add_metric((*labels, location), nbytes)
        yield from (*counters.values(), batches, waiting, memory)


def exposition(repository: Repository) -> tuple[bytes, str]:
    """The metrics in Prometheus' text format, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Collector(repository))
    return generate_latest(registry), CONTENT_TYPE_LATEST
