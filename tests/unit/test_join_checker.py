"""The check of the logs of the join test finds what it must find, and nothing in a right log."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tools.faults.streams.checker import check
from tools.faults.streams.logs import Asked, Barrier, Cut, Entry, Log, Received, Stored
from tools.faults.streams.profiles import PROFILES, Profile

OPEN = PROFILES[0]
DENIED = PROFILES[1]
TRUTH = {
    "ORDERS": [Stored(seq, f"orders.{seq % 4}.{seq % 2}", 100 + seq) for seq in range(1, 31)],
    "TRADES": [Stored(seq, f"trades.{seq % 3}.1", 200 + seq) for seq in range(1, 11)],
}
PATTERN = "orders.>"


def message(seq: int, position: int | None = None, pattern: str = PATTERN) -> Received:
    stored = TRUTH["ORDERS"][seq - 1]
    place = _id(seq if position is None else position)
    return Received("message", pattern, stored.subject, stored.number, place, {})


def _id(seq: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return f"orderskey.{digits[seq]}.1"


def frame(kind: str, **fields: Any) -> Received:
    return Received(kind, "", "", -1, fields.get("id", ""), fields)


def caught_up(seq: int, replayed: int, *, recovered: bool = True) -> Received:
    return frame("caught_up", subjects=[PATTERN], replayed=replayed, recovered=recovered, position=_id(seq))


def right() -> list[Entry]:
    """Return the log of a client that reads everything, is cut off in a replay, and reconnects."""
    return [
        Asked([PATTERN], "all", None),
        *map(message, range(1, 9)),
        Cut(),
        Asked([PATTERN], "all", _id(8)),
        *map(message, range(9, 21)),
        caught_up(20, 12),
        *map(message, range(21, 26)),
        frame("heartbeat", id=_id(25)),
        Cut(),
        Asked([PATTERN], "all", _id(25)),
        caught_up(25, 0),
        *map(message, range(26, 31)),
    ]


def without(index: int) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        del entries[index]

    return change


def swapped(index: int) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        entries[index : index + 2] = reversed(entries[index : index + 2])

    return change


def inserted(index: int, *added: Entry) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        entries[index:index] = added

    return change


def put(index: int, entry: Entry) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        entries[index] = entry

    return change


def find(entries: Sequence[Entry], profile: Profile = OPEN, truth: Mapping[str, Sequence[Stored]] = TRUTH) -> set[str]:
    return set(check(truth, [Log("client", profile, list(entries))]).violations)


def test_right_log_has_no_violations() -> None:
    verdict = check(TRUTH, [Log("client", OPEN, right())])
    assert not verdict.violations, verdict.notes
    assert (verdict.delivered, verdict.resumed) == (30, 2)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (without(3), "lost"),
        (without(15), "lost"),
        (without(-1), "lost"),
        (inserted(5, message(4)), "duplicate"),
        (inserted(26, message(20)), "duplicate"),
        (swapped(4), "duplicate"),
        (inserted(12, frame("gap", subjects=[PATTERN], lost=None, reason="expired")), "false gap"),
        (put(10, Asked([PATTERN], "all", _id(9))), "early id"),
        (put(10, Asked([PATTERN], "all", _id(7))), "late id"),
        (put(26, message(23, 24)), "early id"),
        (put(29, frame("heartbeat", id=_id(26))), "early id"),
        (put(29, frame("heartbeat", id="x" * 110 + "." + "1" * 20 + ".1")), "long id"),
        (put(23, caught_up(21, 12)), "lost"),
        (put(23, caught_up(19, 12)), "late id"),
        (put(23, caught_up(20, 11)), "count"),
        (put(23, caught_up(20, 12, recovered=False)), "recovered"),
        (inserted(24, Received("message", PATTERN, "orders.1.1", 999, _id(20), {})), "stray"),
        (inserted(24, Received("message", PATTERN, "orders.0.0", 121, _id(21), {})), "forbidden"),
        (inserted(24, frame("unsubscribed", subjects=[PATTERN])), "ended"),
        (inserted(-3, Barrier(["orders.*.1"])), "forbidden"),
    ],
)
def test_broken_log_is_found(change: Callable[[list[Entry]], None], kind: str) -> None:
    entries = right()
    change(entries)
    assert kind in find(entries)


def test_denied_message_is_found() -> None:
    shown = [each for each in range(1, 31) if each % 4 != 1]
    entries: list[Entry] = [Asked([PATTERN], "all", None), *map(message, shown), caught_up(30, len(shown))]
    assert find(entries, DENIED) == set()
    assert find([*entries[:3], message(5), *entries[3:]], DENIED) == {"forbidden", "count"}


def test_gap_allows_no_other_loss() -> None:
    gap = frame("gap", subjects=[PATTERN], lost=10, reason="backlog")
    shown = [message(each) for each in range(11, 31)]
    entries: list[Entry] = [Asked([PATTERN], "all", None), gap, *shown, caught_up(30, 20, recovered=False)]
    log = Log("client", OPEN, entries)
    assert not check(TRUTH, [log], ["backlog"]).violations
    assert set(check(TRUTH, [log]).violations) == {"false gap"}
    log.entries[1] = frame("gap", subjects=[PATTERN], lost=9, reason="backlog")
    assert set(check(TRUTH, [log], ["backlog"]).violations) == {"wrong number"}
    log.entries[-1] = caught_up(30, 20)
    assert set(check(TRUTH, [log], ["backlog"]).violations) == {"wrong number", "recovered"}


def test_incomplete_state_is_found() -> None:
    last = {each.subject: each for each in TRUTH["ORDERS"]}
    # No position lies within a state, so only its last message has one.
    *begin, end = sorted(each.seq for each in last.values())
    state = [*(message(seq, 0) for seq in begin), message(end)]
    entries: list[Entry] = [Asked([PATTERN], "last_per_subject", None), *state, caught_up(30, len(state))]
    assert find(entries) == set()
    assert find([*entries[:2], *entries[3:-1], caught_up(30, len(state) - 1)]) == {"state"}
