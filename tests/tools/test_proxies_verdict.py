"""The rule of the table of proxies, applied to made-up records."""

from typing import Any

import pytest

from tools.proxies.record import Record, Row
from tools.proxies.verdict import SLACK, Span, Verdict, judge, tolerance

PUBLISHED = 100
ALLOWED = 20


def rows(role: str, numbers: range | list[int], delay: float = 0.0) -> list[Row]:
    """Return messages that arrive one second after another: message n in second n, 0.4 s after it was published."""
    return [Row(number + delay, role, "message", number) for number in numbers]


def status(time: float, state: str) -> Row:
    return Row(time, "client", "status", {"state": state})


def verdict(*parts: list[Row], ready: float | None = 0.0, connected: bool = True) -> Verdict:
    found = [Row(0.0, "page", "start")]
    if connected:
        found.append(status(0.0, "connected"))
    if ready is not None:
        found.append(Row(ready, "client", "ready"))
    found += (row for part in parts for row in part)
    record = Record(sorted(found, key=lambda row: row.time))
    return judge(record, Span(1, PUBLISHED, lambda moment: int(moment + 0.4)), ALLOWED)


ALL = range(1, PUBLISHED + 1)


def test_client_that_gets_everything_keeps_rule() -> None:
    assert verdict(rows("eventsource", ALL), rows("client", ALL, 0.1)).failures == []


def test_client_with_more_messages_than_event_source_keeps_rule() -> None:
    found = verdict(rows("eventsource", range(1, 50)), rows("client", ALL))
    assert (found.failures, found.missed) == ([], 0)


def test_rule_is_kept_if_event_source_gets_nothing() -> None:
    assert verdict(ready=None).failures == []


def test_client_that_is_never_ready_breaks_rule() -> None:
    found = verdict(rows("eventsource", ALL), ready=None, connected=False)
    assert (found.pretended, found.compared) == (0, 0)
    assert found.failures == ["in the second half 0 messages, the EventSource 40"]


def test_connected_client_without_messages_pretends() -> None:
    found = verdict(rows("eventsource", ALL), ready=None)
    assert found.pretended == PUBLISHED
    assert '"connected" while only the EventSource got 100 messages' in found.failures


def test_messages_before_status_do_not_count_as_pretended() -> None:
    late = [status(60.0, "connected")]
    assert verdict(rows("eventsource", ALL), late, ready=None, connected=False).pretended == PUBLISHED - 60


def test_silence_within_tolerance_keeps_rule() -> None:
    silent = range(20, 20 + ALLOWED)
    heard = [number for number in ALL if number not in silent]
    gap = [Row(39.5, "client", "gap", "reconnect")]
    found = verdict(rows("eventsource", ALL), rows("client", heard, 0.1), gap)
    assert (found.pretended, found.missed, found.unannounced, found.failures) == (ALLOWED + 1, ALLOWED, 0, [])


def test_buffered_event_source_widens_tolerance() -> None:
    bursts = [Row(number // 30 * 30 + 30, "eventsource", "message", number) for number in range(1, 90)]
    held = [Row(number // 30 * 30 + 45, "client", "message", number) for number in range(1, 90)]
    assert verdict(bursts, held).failures == []


def test_messages_that_are_missing_without_gap_break_rule() -> None:
    found = verdict(rows("eventsource", ALL), rows("client", [number for number in ALL if number != 30]))
    assert (found.missed, found.unannounced) == (1, 1)
    assert found.failures == ["1 messages are missing without a gap"]


def test_messages_before_ready_may_be_missing() -> None:
    found = verdict(rows("eventsource", ALL), rows("client", range(20, 101)), ready=19.4)
    assert (found.missed, found.failures) == (0, [])


def test_messages_on_their_way_are_not_missing() -> None:
    found = verdict(rows("eventsource", ALL), rows("client", range(1, PUBLISHED + 1 - SLACK)))
    assert (found.missed, found.failures) == (0, [])


def lossy(lost: int, of: int) -> list[int]:
    return [number for number in ALL if number % of >= lost]


GAPS = [Row(number - 0.5, "client", "gap", "reconnect") for number in ALL]


@pytest.mark.parametrize(("lost", "kept"), [(2, True), (3, True), (4, False)])
def test_client_may_lose_tenth_more_than_event_source_that_loses_some(lost: int, kept: bool) -> None:
    found = verdict(rows("eventsource", lossy(2, 20)), rows("client", lossy(lost, 20)), GAPS)
    assert not found.unannounced
    assert (found.failures == []) is kept


def test_client_may_lose_nothing_of_complete_event_source() -> None:
    found = verdict(rows("eventsource", ALL), rows("client", lossy(1, 20)), GAPS)
    assert (found.unannounced, found.settled) == (0, False)


def test_tolerance_is_number_of_messages_in_two_heartbeats() -> None:
    assert tolerance(5, 15) == SLACK + 150


def test_received_messages_are_counted_from_start_of_page() -> None:
    parts: list[Any] = [Row(10.0, "page", "start"), *rows("client", [12, 13, 13, 20])]
    found = Record(parts).received("client", end=31.0, last=20)
    assert (found.first, found.count, found.pause, found.goes_on) == (2.0, 3, 11.0, True)
    assert not Record(parts).received("client", end=31.0, last=21).goes_on
    assert Record(parts).received("websocket", end=31.0, last=20).first is None
