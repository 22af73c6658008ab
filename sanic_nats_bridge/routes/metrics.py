"""``/metrics``: the metrics of all workers of this server, in the formats of Prometheus."""

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

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class _Collector(Collector):
    """The readings of all workers, for one response."""

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


def add_metrics_route(blueprint: Blueprint, aggregator: MetricsAggregator) -> None:
    """Serve the metrics on the blueprint."""

    @describe_metrics()
    async def metrics(request: Request) -> HTTPResponse:
        # A registry for this response only, because the library's default one belongs to the app.
        registry = CollectorRegistry()
        registry.register(_Collector(await aggregator.gather()))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return response(encode(registry), 200, _HEADERS, content_type)

    blueprint.add_route(metrics, "/metrics", methods=["GET", "HEAD"], name="metrics")
