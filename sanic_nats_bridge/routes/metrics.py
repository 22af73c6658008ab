"""``/metrics``: what the workers of this server count, as Prometheus reads it."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sanic import Blueprint, HTTPResponse, Request
from sanic_ext import openapi

from ..metrics.aggregator import MetricsAggregator
from ..metrics.definitions import METRICS, Readings

__all__ = ["add_metrics_route"]

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class _Collector(Collector):
    """Hands what was gathered to `prometheus_client`, once."""

    def __init__(self, gathered: Mapping[str, Readings]) -> None:
        self._gathered = gathered

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for metric in METRICS:
            labels = ["worker"] if metric.label is None else ["worker", metric.label]
            kind = CounterMetricFamily if metric.grows else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=labels)
            for worker, found in sorted(self._gathered.items()):
                for value, number in sorted(found.get(metric.name, {}).items()):
                    family.add_metric([worker, value][: len(labels)], number)
            yield family


def add_metrics_route(blueprint: Blueprint, aggregator: MetricsAggregator) -> None:
    """Serve them on the blueprint."""

    async def metrics(request: Request) -> HTTPResponse:
        # One of its own, for this answer: what the app has in the library's is the app's.
        registry = CollectorRegistry()
        registry.register(_Collector(await aggregator.gather()))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return HTTPResponse(encode(registry), 200, dict(_HEADERS), content_type)

    openapi.exclude()(metrics)
    blueprint.add_route(metrics, "/metrics", methods=["GET", "HEAD"], name="metrics")
