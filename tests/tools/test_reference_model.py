"""Tests of the model against which the random walk is checked."""

import pytest

from tests.support.model import Ledger, matches

GAP, LIVE, PUBLISH = "gap", "live", "publish"


def ledger_after(*events: int | str) -> Ledger:
    """Return the ledger of a live pattern. Each ``publish`` has the next number; a number is a received message."""
    ledger, published = Ledger(), 0
    ledger.open(dispatched=0)
    for event in events:
        if event == PUBLISH:
            published += 1
            ledger.demand(published)
        elif isinstance(event, str):
            ledger.mark(gap=event == GAP)
        else:
            assert ledger.receive(event) is None
    return ledger


@pytest.mark.parametrize(
    ("events", "owed"),
    [
        ([PUBLISH, 1], []),
        ([PUBLISH], [1]),
        ([PUBLISH, PUBLISH, 2], [1]),
        ([PUBLISH, GAP, PUBLISH, 2], []),
        ([PUBLISH, PUBLISH, GAP, PUBLISH, 3], []),
        ([PUBLISH, PUBLISH, 2, GAP], [1]),
        ([GAP, PUBLISH], []),
        ([GAP, LIVE, PUBLISH], [1]),
        ([PUBLISH, GAP, LIVE], []),
        ([GAP, LIVE, PUBLISH, GAP], []),
        ([GAP, PUBLISH, PUBLISH, 1, LIVE], [2]),
    ],
)
def test_messages_neither_received_nor_in_gap_are_owed(events: list[int | str], owed: list[int]) -> None:
    assert ledger_after(*events).owed == owed


def test_duplicate_late_and_unexpected_messages_are_found() -> None:
    ledger = Ledger()
    assert ledger.receive(1) is not None
    ledger.open(dispatched=3)
    assert ledger.receive(3) is not None
    assert ledger.receive(5) is None
    assert ledger.receive(5) is not None
    assert ledger.receive(4) is not None
    ledger.close(published=7)
    assert ledger.receive(7) is None
    assert ledger.receive(8) is not None


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.x", "a.x", True),
        ("a.x", "a.y", False),
        ("a.*", "a.x", True),
        ("a.*", "a.x.z", False),
        ("a.*", "a", False),
        ("a.>", "a.x.z", True),
        ("a.>", "a", False),
        ("a.>", "b.x", False),
        ("a.*.z", "a.x.z", True),
    ],
)
def test_model_matches_subjects_like_nats(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected
