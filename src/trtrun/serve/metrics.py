"""Prometheus metrics, read from the statistics when somebody asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from ..errors import DeviceError
from .bodies import Bodies
from .repository import BOUNDS, Repository

_LABELS = ("model", "version")
_COUNTERS = {
    "requests": ("trtrun_requests", "Requests that were taken and have ended, well or not."),
    "failures": ("trtrun_failures", "Requests that were taken and failed."),
    "refused": ("trtrun_refused_requests", "Requests that were turned away because more came than can be done."),
    "rows": ("trtrun_inferences", "Rows of the requests that succeeded."),
    "queued": ("trtrun_queue_seconds", "Time that requests waited that succeeded, all together."),
    "computed": ("trtrun_compute_seconds", "Time that requests ran that succeeded, all together."),
}


class _Collector:
    def __init__(self, repository: Repository, bodies: Bodies) -> None:
        self._repository = repository
        self._bodies = bodies

    def collect(self) -> Iterator[Any]:
        counters = {name: CounterMetricFamily(*told, labels=_LABELS) for name, told in _COUNTERS.items()}
        batches = CounterMetricFamily("trtrun_batches", "Batches that ran, by their rows.", labels=(*_LABELS, "rows"))
        latency = HistogramMetricFamily(
            "trtrun_request_seconds", "From a request's arrival to its result, in the server.", labels=_LABELS
        )
        waiting = GaugeMetricFamily("trtrun_waiting_requests", "Requests in the queue.", labels=_LABELS)
        memory = GaugeMetricFamily(
            "trtrun_memory_bytes", "Buffers of the model's sessions.", labels=(*_LABELS, "location")
        )
        for model, statistics in self._repository.loaded():
            labels = (model.name, model.version)
            for name, counter in counters.items():
                counter.add_metric(labels, getattr(statistics, name))
            for rows, (count, _) in sorted(statistics.batches.items()):
                batches.add_metric((*labels, str(rows)), count)
            counts = itertools.accumulate(statistics.histogram)
            bounds = [*map(str, BOUNDS), "+Inf"]
            latency.add_metric(labels, list(zip(bounds, counts, strict=True)), statistics.queued + statistics.computed)
            waiting.add_metric(labels, model.batcher.waiting)
            for location, nbytes in model.batcher.memory.items():
                memory.add_metric((*labels, location), nbytes)
        yield from (*counters.values(), batches, latency, waiting, memory)
        held = GaugeMetricFamily("trtrun_body_bytes", "Bodies of requests that the server holds.")
        held.add_metric((), self._bodies.held)
        turned_away = CounterMetricFamily("trtrun_refused_bodies", "Requests for whose bodies there was no room.")
        turned_away.add_metric((), self._bodies.refused)
        yield from (held, turned_away, self._gpus())

    def _gpus(self) -> Any:
        family = GaugeMetricFamily(
            "trtrun_gpu_memory_bytes", "Memory of the GPU, of all processes.", labels=("gpu", "state")
        )
        if self._repository.devices:
            from ..cuda.device import Device, gpu_count

            for ordinal in self._repository.devices if gpu_count() else ():
                try:
                    free, total = Device(ordinal).memory()
                except DeviceError:  # it has failed, which the health says
                    continue
                family.add_metric((str(ordinal), "used"), total - free)
                family.add_metric((str(ordinal), "total"), total)
        return family


def exposition(repository: Repository, bodies: Bodies) -> tuple[bytes, str]:
    """The metrics in Prometheus' text format, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Collector(repository, bodies))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Workers:
    def __init__(self, texts: Mapping[int, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for index, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                told = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    told.add_sample(sample.name, {**sample.labels, "worker": str(index)}, sample.value)
        yield from families.values()


def of_workers(texts: Mapping[int, str]) -> tuple[bytes, str]:
    """The expositions of several workers as one, whose samples have the label ``worker``, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Workers(texts))
    return generate_latest(registry), CONTENT_TYPE_LATEST
