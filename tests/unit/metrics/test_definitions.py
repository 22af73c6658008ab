import dataclasses
import re
from typing import Any

import pytest

from sanic_nats_bridge.metrics.definitions import METRICS, combined, readings
from sanic_nats_bridge.metrics.stats import Stats

STATS = Stats(
    sessions={"websocket": 2, "sse": 1},
    patterns=3,
    messages=4,
    deliveries=5,
    sent_bytes=6,
    lost={"slow_consumer": 7},
    gaps={"internal": 8},
    slow_consumers=9,
    status_messages=13,
    refused={"limit.rate": 10},
    closes={"1001": 11},
    nats="connected",
    control="connected",
    control_dropped={"stale": 14},
    nats_reconnects=12,
    published={"sent": 23},
    answered_requests=24,
    current_publishes={"publish": 25, "request": 26},
    replays={"after": 15},
    replay_results={"recovered": 16},
    replayed=17,
    current_replays={"running": 18, "waiting": 19},
    feeds_reading={"ORDERS": True},
    streams_available={"ORDERS": True},
    feed_lag={"ORDERS": 20},
    history_bytes=21,
    jetstream_requests=22,
    loop_lag=0.5,
)


def test_every_stats_field_has_metric() -> None:
    found = readings(STATS)
    assert len(found) == len(METRICS) == len(dataclasses.fields(Stats))
    assert found["natsbridge_sessions"] == {"websocket": 2, "sse": 1}
    assert found["natsbridge_sent_bytes_total"] == {"": 6}
    assert found["natsbridge_refused_commands_total"] == {"limit.rate": 10}
    assert found["natsbridge_nats_connected"] == {"": 1}
    assert found["natsbridge_control_connected"] == {"": 1}
    assert readings(dataclasses.replace(STATS, nats="disconnected"))["natsbridge_nats_connected"] == {"": 0}
    assert readings(dataclasses.replace(STATS, control="disconnected"))["natsbridge_control_connected"] == {"": 0}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metric_names_and_labels_follow_prometheus_conventions(metric: Any) -> None:
    assert re.fullmatch(r"natsbridge(_[a-z]+)+", metric.name)
    assert not re.search(r"_(ms|milliseconds|kb|count|gauge|counter)(_|$)", metric.name)
    assert metric.label in (None, "transport", "reason", "code", "start", "result", "state", "stream", "action")
    assert metric.help
    assert not metric.help.endswith(".")


def test_only_counters_of_dead_process_are_kept() -> None:
    whole = combined([(readings(STATS), False)])
    assert set(whole) == {metric.name for metric in METRICS if metric.name.endswith("_total")}
    assert whole["natsbridge_lost_messages_total"] == {"slow_consumer": 7}


def test_readings_of_two_live_processes_are_combined() -> None:
    other = dataclasses.replace(
        STATS,
        nats="disconnected",
        loop_lag=0.1,
        closes={"1000": 1},
        feed_lag={"ORDERS": 1},
        streams_available={"ORDERS": False},
    )
    whole = combined([(readings(STATS), True), (readings(other), True)])
    assert whole["natsbridge_sessions"] == {"websocket": 4, "sse": 2}
    assert whole["natsbridge_messages_total"] == {"": 8}
    assert whole["natsbridge_closed_sessions_total"] == {"1000": 1, "1001": 11}
    assert whole["natsbridge_nats_connected"] == {"": 0}
    assert whole["natsbridge_loop_lag_seconds"] == {"": 0.5}
    assert whole["natsbridge_current_replays"] == {"running": 36, "waiting": 38}
    assert whole["natsbridge_publishes_total"] == {"sent": 46}
    assert whole["natsbridge_current_publishes"] == {"publish": 50, "request": 52}
    assert whole["natsbridge_feed_lag_messages"] == {"ORDERS": 20}
    assert whole["natsbridge_stream_available"] == {"ORDERS": 0}


def test_unknown_metrics_of_other_version_are_ignored() -> None:
    whole = combined([({"natsbridge_messages_total": {"": 1}, "natsbridge_unknown_total": {"": 1}}, True)])
    assert whole["natsbridge_messages_total"] == {"": 1}
    assert "natsbridge_unknown_total" not in whole
