"""The check of clients of streams, for streams whose content begins again, and the record of what they have held."""

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol import subjects
from tools.faults.patterns import overlaps
from tools.faults.streams import checker
from tools.faults.streams.checker import check
from tools.faults.streams.cutting import CuttingProxy
from tools.faults.streams.fault import to_verdict
from tools.faults.streams.logs import Asked, Cut, Ended, Entry, Log, Received, Stored, Truth
from tools.faults.streams.profiles import PROFILES
from tools.faults.streams.publisher import Record

OPEN = PROFILES[0]
PATTERN = "orders.>"
LIFE = 10**9
SECOND_AT = 1000
"""The time at which the second life began."""

OLD = [Stored(seq, "orders.1.1", seq) for seq in range(1, 6)]
NEW = [Stored(LIFE + seq, "orders.1.1", 100 + seq) for seq in range(1, 6)]
TRUTH = Truth({"ORDERS": [*OLD, *NEW], "TRADES": []}, {"ORDERS": [(0, 0), (SECOND_AT, LIFE)]})
SAME_KEY = ("key", "key")
OTHER_KEY = ("old", "new")


def position(stored: Stored, keys: Sequence[str] = SAME_KEY, seq: int | None = None) -> str:
    is_new = stored.seq > LIFE
    time = SECOND_AT + 5 if is_new else 5
    number = stored.seq % LIFE if seq is None else seq
    return f"{keys[is_new]}.{number}.{'rz' if time > SECOND_AT else '5'}"


def message(stored: Stored, keys: Sequence[str] = SAME_KEY) -> Received:
    return Received("message", PATTERN, stored.subject, stored.number, position(stored, keys), {})


def frame(kind: str, **fields: object) -> Received:
    return Received(kind, "", "", -1, "", fields)


def reset() -> Received:
    return frame("gap", subjects=[PATTERN], lost=None, reason="reset")


def caught_up(at: Stored, replayed: int, *, recovered: bool, keys: Sequence[str] = SAME_KEY) -> Received:
    return frame("caught_up", subjects=[PATTERN], replayed=replayed, recovered=recovered, position=position(at, keys))


def returns(keys: Sequence[str] = SAME_KEY) -> list[Entry]:
    """Return the log of a client that was disconnected while the stream began again."""
    return [
        Asked([PATTERN], "new", None),
        caught_up(OLD[0], 0, recovered=True, keys=keys),
        *(message(each, keys) for each in OLD[1:3]),
        Cut(),
        Asked([PATTERN], "new", position(OLD[2], keys)),
        reset(),
        caught_up(NEW[1], 0, recovered=False, keys=keys),
        *(message(each, keys) for each in NEW[2:]),
    ]


def found(entries: list[Entry], truth: Truth = TRUTH, codes: Sequence[str] = ()) -> checker.Verdict:
    return check(truth, [Log("client", OPEN, entries)], ["reset"], codes)


@pytest.mark.parametrize(
    ("repeats", "at", "violations"), [(True, 1, {}), (True, 0, {"late id": 1}), (False, 1, {"late id": 1})]
)
def test_message_that_comes_twice_may_follow_caught_up(repeats: bool, at: int, violations: dict[str, int]) -> None:
    entries: list[Entry] = [
        Asked([PATTERN], "new", None),
        caught_up(OLD[0], 0, recovered=True),
        *(message(each) for each in OLD[1:3]),
        Cut(),
        Asked([PATTERN], "new", position(OLD[1])),
        caught_up(OLD[at], 0, recovered=True),
        *(message(each) for each in OLD[2:]),
    ]
    truth = Truth({"ORDERS": OLD, "TRADES": []}, {"ORDERS": [(0, 0)]})
    assert check(truth, [Log("client", OPEN, entries, repeats=repeats)]).violations == violations


@pytest.mark.parametrize("keys", [SAME_KEY, OTHER_KEY])
def test_client_of_stream_that_began_again_is_judged_in_both_lives(keys: Sequence[str]) -> None:
    verdict = found(returns(keys))
    assert not verdict.violations, verdict.notes
    assert (verdict.delivered, verdict.gaps["reset"]) == (5, 1)


@pytest.mark.parametrize("keys", [SAME_KEY, OTHER_KEY])
def test_loss_in_second_life_is_found(keys: Sequence[str]) -> None:
    entries = returns(keys)
    del entries[-2]
    assert found(entries).violations == {"lost": 1}


def test_second_life_without_gap_counts_as_loss() -> None:
    entries = returns()
    del entries[6]
    entries[6] = caught_up(NEW[1], 0, recovered=True)
    # The last two of the first life, and two of the second.
    assert found(entries).violations == {"lost": 4}


def test_session_that_lasts_may_jump_into_second_life() -> None:
    entries = [*returns()[:4], reset(), *map(message, NEW[1:])]
    verdict = found(entries)
    assert not verdict.violations, verdict.notes
    assert verdict.announced == 3
    del entries[4]
    assert found(entries).violations == {"lost": 3}


def test_client_may_resume_in_second_life_before_its_next_message() -> None:
    entries: list[Entry] = [
        *returns()[:4],
        reset(),
        Cut(),
        Asked([PATTERN], "new", position(NEW[2])),
        caught_up(NEW[2], 0, recovered=True),
    ]
    entries += map(message, NEW[3:])
    assert not found(entries).violations


def test_message_that_a_stream_may_have_lost_is_allowed_but_not_due() -> None:
    truth = Truth(TRUTH.stored, TRUTH.lives, frozenset({OLD[-1].number}))
    complete = [*returns()[:4], *map(message, OLD[3:]), reset(), *map(message, NEW)]
    assert not found(complete, truth).violations
    del complete[5]
    assert not found(complete, truth).violations
    assert found(complete).announced == 1


def test_subscription_may_end_with_expected_code_only() -> None:
    end = frame("unsubscribed", subjects=[PATTERN], code="history.unavailable")
    entries = [*returns()[:4], end]
    assert found(entries).violations["ended"] == 1
    verdict = found(entries, codes=["history.unavailable"])
    assert (verdict.ended, dict(verdict.violations)) == (1, {})


def test_each_lost_message_counts() -> None:
    entries = returns()
    del entries[-3:]
    assert found(entries).violations == {"lost": 3}


def test_every_kind_of_violation_has_a_column() -> None:
    source = Path(checker.__file__).read_text()
    kinds = set(re.findall(r'_violation\(\s*"([a-z_ ]+)"', source))
    assert kinds > {"lost", "early id", "recovered"}
    verdict = to_verdict(checker.Verdict(delivered=3, violations=Counter(dict.fromkeys(kinds, 1))))
    assert (verdict.delivered, verdict.broken) == (3, len(kinds))


def test_record_distinguishes_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 5.0)
    record = Record()
    for number in range(1, 8):
        record.published(number, "orders.1.1" if number != 4 else "trades.1.1")
    for number, seq in ((1, 1), (2, 2), (4, 1)):
        record.acknowledged(number, seq)
    record.begin_life("ORDERS")
    record.acknowledged(7, 1)
    record.refused(6)
    truth = record.truth({"ORDERS": [Stored(1, "orders.1.1", 7)], "TRADES": [Stored(1, "trades.1.1", 4)]})
    # Messages 3 and 5 may have been stored before the end of the first life.
    assert [(each.number, each.seq) for each in truth.stored["ORDERS"]] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (5, 4),
        (7, LIFE + 1),
    ]
    assert truth.unsure == {3, 5}
    assert truth.lives["ORDERS"] == [(0, 0), (5000, LIFE)]
    assert [each.seq for each in truth.stored["TRADES"]] == [1]


def test_record_keeps_removed_messages() -> None:
    record = Record()
    for number in (1, 2):
        record.published(number, "orders.1.1")
        record.acknowledged(number, number)
    record.remove("ORDERS")
    truth = record.truth({"ORDERS": [Stored(3, "orders.1.1", 3)], "TRADES": []})
    assert [each.number for each in truth.stored["ORDERS"]] == [1, 2, 3]
    assert not truth.unsure


TOKENS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4)


@given(TOKENS, TOKENS, st.booleans(), st.booleans())
def test_overlap_is_that_of_nats(one: list[str], other: list[str], one_open: bool, other_open: bool) -> None:
    first, second = (
        ".".join([*tokens, *([">"] if rest else [])]) for tokens, rest in ((one, one_open), (other, other_open))
    )
    assert overlaps(first, second) == subjects.overlaps(first, second)


def test_client_that_unsubscribed_expects_nothing() -> None:
    assert not found([*returns()[:4], Ended([PATTERN])]).violations


EVENTS = [b"14\r\nid: %d\ndata: 12345678\n\n\r\n" % number for number in range(9)]


async def answer_through_proxy(proxy_seed: int, *, cuts: bool) -> tuple[bytes, int]:
    """Return what arrives of some events, and the number of connections that the proxy has cut."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for _ in range(500):
                writer.writelines(EVENTS)
                await writer.drain()
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        proxy = CuttingProxy(server.sockets[0].getsockname()[1], random.Random(proxy_seed))
        proxy.cuts = cuts
        async with proxy.running():
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            data = await reader.read()
            writer.close()
    return data, proxy.count


async def test_proxy_cuts_between_events_and_inside_of_them() -> None:
    everything = b"".join(EVENTS) * 500
    assert await answer_through_proxy(1, cuts=False) == (everything, 0)
    places = []
    for seed in range(20):
        data, count = await answer_through_proxy(seed, cuts=True)
        assert count == 1
        assert everything.startswith(data)
        assert len(data) < len(everything)
        places.append(len(data) % len(EVENTS[0]))
    assert 5 < places.count(0) < 15
