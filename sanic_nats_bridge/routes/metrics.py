"""``/metrics``: the metrics of all workers of this server, in the formats of Prometheus.

A request needs no permission, and makes a worker read the values of all others. So the values are gathered and encoded
once per second at most, however often they are requested.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sanic import Blueprint, HTTPResponse, Request

from ..metrics.aggregator import MetricsAggregator
from ..metrics.definitions import METRICS, Readings
from .openapi import describe_metrics
from .responses import response

__all__ = ["add_metrics_route"]

_MAX_AGE_SECONDS = 1.0
_MAX_CONTENT_TYPES = 4
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class _Collector(Collector):
    """The readings of all workers at one moment."""

    def __init__(self, readings: Mapping[str, Readings]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for metric in METRICS:
            labels = ["worker"] if metric.label is None else ["worker", metric.label]
            kind = CounterMetricFamily if metric.grows else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=labels)
            for worker, readings in sorted(self._readings.items()):
                for value, number in sorted(readings.get(metric.name, {}).items()):
                    family.add_metric([worker, value][: len(labels)], number)
            yield family


class _Snapshot:
    """The metrics of all workers, at most a second old."""

    def __init__(self, aggregator: MetricsAggregator) -> None:
        self._aggregator = aggregator
        self._lock = asyncio.Lock()
        self._taken = -math.inf
        self._registry = CollectorRegistry()
        self._encoded: dict[str, bytes] = {}
        """The response body of each content type that was requested since the values were gathered."""

    async def encoded(self, accept: str) -> tuple[bytes, str]:
        """Return the body and the content type of a response to a request with this Accept header."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now >= self._taken + _MAX_AGE_SECONDS:
                # A registry for these values only, because the library's default one belongs to the app.
                registry = CollectorRegistry()
                registry.register(_Collector(await self._aggregator.gather()))
                self._taken, self._registry, self._encoded = now, registry, {}
        encode, content_type = choose_encoder(accept)
        if content_type not in self._encoded and len(self._encoded) >= _MAX_CONTENT_TYPES:
            # The version of OpenMetrics in the Accept header may be any number.
            encode, content_type = choose_encoder("")
        if content_type not in self._encoded:
            self._encoded[content_type] = encode(self._registry)
        return self._encoded[content_type], content_type


def add_metrics_route(blueprint: Blueprint, aggregator: MetricsAggregator) -> None:
    """Serve the metrics on the blueprint."""
    snapshot = _Snapshot(aggregator)

    @describe_metrics()
    async def metrics(request: Request) -> HTTPResponse:
        body, content_type = await snapshot.encoded(request.headers.get("accept", ""))
        return response(body, 200, _HEADERS, content_type)

    blueprint.add_route(metrics, "/metrics", methods=["GET", "HEAD"], name="metrics")
