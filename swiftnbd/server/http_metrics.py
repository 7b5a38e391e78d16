# SPDX-License-Identifier: MIT
"""What a `Monitor` sees, as Prometheus reads it. docs/monitoring.md has the table of metrics."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import swiftnbd
from swiftnbd.export.base import BaseExport
from swiftnbd.export.status import CacheStatus, ExportState
from swiftnbd.metrics import SECONDS_BOUNDS, Durations, StoreTraffic
from swiftnbd.server.history import EXPORTS_PER_TURN, RequestsAtWork
from swiftnbd.server.monitor import Monitor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NO_ANSWER = "none"  # in the place of a status
_NONE_AT_WORK = RequestsAtWork()


class Spec(NamedTuple):
    """A metric: its name without ``swiftnbd_``, and its labels with commas."""

    family: type[Metric]
    name: str
    labels: str
    text: str


_COUNTER, _GAUGE, _HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
SPECS = tuple(
    Spec(*row)
    for row in (
        (_GAUGE, "build_info", "version", "Always 1."),
        (_GAUGE, "connections", "", "Connections that have chosen an export."),
        (_HISTOGRAM, "event_loop_lag_seconds", "", "How late the event loop woke up a timer."),
        (_GAUGE, "export_size_bytes", "export", "Size of the disk."),
        (_GAUGE, "export_state", "export,state", "1 for the state it is in, 0 for the others."),
        (_GAUGE, "export_connections", "export", "Its connections."),
        (_GAUGE, "lock_lease_seconds", "export", "How long its lock holds if it is not renewed."),
        (_COUNTER, "requests_total", "export,command", "Requests that were answered."),
        (_COUNTER, "request_errors_total", "export,command", "Of these, those that failed."),
        (
            _HISTOGRAM,
            "request_duration_seconds",
            "export,command",
            "From when a request was read to when its reply was queued.",
        ),
        (_GAUGE, "requests_under_way", "export", "Requests that are not answered yet."),
        (_GAUGE, "oldest_request_seconds", "export", "How old the oldest of them is, else 0."),
        (_COUNTER, "read_bytes_total", "export", "Bytes that clients have read."),
        (_COUNTER, "written_bytes_total", "export", "Bytes that clients have written."),
        (_COUNTER, "store_read_bytes_total", "export", "Bytes fetched from the store."),
        (_COUNTER, "store_written_bytes_total", "export", "Bytes put into the store."),
        (_COUNTER, "cache_hits_total", "export", "READs that did not wait for the store."),
        (_COUNTER, "cache_misses_total", "export", "READs that did."),
        (_COUNTER, "cache_evictions_total", "export", "Blocks given up to make room for others."),
        (_GAUGE, "cache_bytes", "export", "Bytes in the cache."),
        (_GAUGE, "cache_limit_bytes", "export", "How many there may be."),
        (_GAUGE, "dirty_bytes", "export", "Bytes in the cache that are not stored yet."),
        (_GAUGE, "dirty_limit_bytes", "export", "How many there may be before writers wait."),
        (_GAUGE, "dirty_objects", "export", "Objects with changes that are not stored yet."),
        (_GAUGE, "uploading_objects", "export", "Of these, those that are being stored."),
        (_COUNTER, "swift_requests_total", "method,status", "Requests that have ended."),
        (_HISTOGRAM, "swift_request_duration_seconds", "method", "How long they took."),
        (_COUNTER, "swift_retries_total", "", "Operations that were tried once more."),
        (_GAUGE, "swift_requests_under_way", "", "Requests that have not ended."),
        (_GAUGE, "swift_trouble_seconds", "", "For how long Swift has been failing, else 0."),
    )
)


async def exposition(monitor: Monitor) -> bytes:
    """The text of a scrape. What it says of one export belongs to one moment."""
    families = _Families()
    _put_server(families, monitor)
    at_work = monitor.at_work()
    for number, export in enumerate(list(monitor.exports.values())):
        if number % EXPORTS_PER_TURN == EXPORTS_PER_TURN - 1:
            await asyncio.sleep(0)
        _put_export(families, export, at_work.get(export.name, _NONE_AT_WORK))
    if monitor.traffic is not None:
        _put_swift(families, monitor.traffic)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(families)
    # in a thread: it takes some 10 us a line, and a thousand exports have 50,000 lines
    return await asyncio.to_thread(generate_latest, registry)


class _Families(Collector):
    """The metrics of one scrape, filled before they are collected."""

    def __init__(self) -> None:
        self._by_name = {
            spec.name: spec.family(  # type: ignore[call-arg]  # the families', not Metric's
                f"swiftnbd_{spec.name}",
                spec.text,
                labels=spec.labels.split(",") if spec.labels else (),
            )
            for spec in SPECS
        }

    def describe(self) -> Iterable[Metric]:
        return ()  # or all of it would be collected once more

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._by_name.values() if family.samples)

    def put(self, name: str, value: float, *labels: str) -> None:
        """One value of a counter or gauge."""
        family = self._by_name[name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, value)

    def put_durations(self, name: str, durations: Durations, *labels: str) -> None:
        """One histogram."""
        family = self._by_name[name]
        assert isinstance(family, HistogramMetricFamily)
        buckets, total = [], 0
        for bound, count in zip((*SECONDS_BOUNDS, "+Inf"), durations.counts, strict=True):
            total += count
            buckets.append((str(bound), total))
        family.add_metric(labels, buckets, durations.seconds)


def _put_server(families: _Families, monitor: Monitor) -> None:
    families.put("build_info", 1, swiftnbd.__version__)
    families.put("connections", len(monitor.connections()))
    families.put_durations("event_loop_lag_seconds", monitor.recorder.lag)


def _put_export(families: _Families, export: BaseExport, at_work: RequestsAtWork) -> None:
    name, status, counters = export.name, export.status, export.counters
    for state in ExportState:
        families.put("export_state", state is status.state, name, state)
    for command in sorted(counters.requests.keys() | counters.durations.keys()):
        families.put("requests_total", counters.requests_of(command), name, command)
        families.put("request_errors_total", counters.errors[command], name, command)
        if command in counters.durations:
            durations = counters.durations[command]
            families.put_durations("request_duration_seconds", durations, name, command)
    for metric, value in {
        "export_size_bytes": export.facts.size,
        "export_connections": status.connections,
        "requests_under_way": at_work.count,
        "oldest_request_seconds": at_work.oldest_seconds,
        "read_bytes_total": counters.client_out,
        "written_bytes_total": counters.client_in,
    }.items():
        families.put(metric, value, name)
    if status.lease_seconds is not None:
        families.put("lock_lease_seconds", status.lease_seconds, name)
    if status.cache is not None:
        _put_cache(families, export, status.cache)


def _put_cache(families: _Families, export: BaseExport, cache: CacheStatus) -> None:
    counters = export.counters
    for metric, value in {
        "store_read_bytes_total": counters.store_in,
        "store_written_bytes_total": counters.store_out,
        "cache_hits_total": counters.requests_of("READ") - counters.missed_reads,
        "cache_misses_total": counters.missed_reads,
        "cache_evictions_total": counters.evictions,
        "cache_bytes": cache.cached_bytes,
        "cache_limit_bytes": export.cache_bytes_max or 0,
        "dirty_bytes": cache.dirty_bytes,
        "dirty_limit_bytes": cache.dirty_limit_bytes,
        "dirty_objects": cache.dirty_objects,
        "uploading_objects": cache.uploading_objects,
    }.items():
        families.put(metric, value, export.name)


def _put_swift(families: _Families, traffic: StoreTraffic) -> None:
    for (method, status), times in sorted(traffic.requests.items()):
        families.put("swift_requests_total", times, method, status or NO_ANSWER)
    for method, durations in sorted(traffic.durations.items()):
        families.put_durations("swift_request_duration_seconds", durations, method)
    families.put("swift_retries_total", traffic.retries)
    families.put("swift_requests_under_way", traffic.under_way)
    families.put("swift_trouble_seconds", traffic.trouble_seconds or 0.0)
