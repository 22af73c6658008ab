import asyncio

import pytest

from tests.support.fakes import FakeLink, FakeSubscriber
from tests.unit.hub.test_hub import follow, turns


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("live.a", "live.a", ["live.b", "live", "live.a.b", "src.secret.42", "LIVE.a", "live.a "]),
        ("live.*", "live.a", ["live", "live.a.b", "src.a", "alive.a", "xlive.a"]),
        ("live.>", "live.a.b", ["live", "src.secret.42", "alive.a", "liveX.a"]),
        ("live.*.>", "live.a.b", ["live.a", "src.a.b"]),
        ("*.a", "live.a", ["live.b", "live.a.b", "a"]),
        ("*", "live", ["live.a"]),
        (">", "live", []),
    ],
)
async def test_message_outside_pattern_is_dropped_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture, pattern: str, inside: str, outside: list[str]
) -> None:
    _, hub = FakeLink.with_hub(confirms=True)
    (view,) = await follow(hub, subscriber := FakeSubscriber(), pattern)
    for subject in outside:
        hub.on_message(view.interest, subject.encode(), b"", b"1")
    hub.on_message(view.interest, inside.encode(), b"", b"2")
    await turns()
    assert [frame["subject"] for frame in subscriber.frames] == [inside]
    assert hub._counters.lost["subject_mismatch"] == len(outside)
    assert hub._counters.messages == 1
    logged = [record.getMessage() for record in caplog.records if "outside the subscribed pattern" in record.msg]
    assert len(logged) == bool(outside)
    assert all(f"'{outside[0]}'" in line and f"'{pattern}'" in line for line in logged)


async def test_mismatch_log_counts_messages_of_last_minute(caplog: pytest.LogCaptureFixture) -> None:
    _, hub = FakeLink.with_hub(confirms=True)
    (view,) = await follow(hub, FakeSubscriber(), "a")
    for _ in range(3):
        hub.on_message(view.interest, b"b", b"", b"1")
    await asyncio.sleep(61)
    hub.on_message(view.interest, b"b\xff", b"", b"1")
    assert [record.getMessage().partition("outside")[0] for record in caplog.records] == [
        "Dropped messages from NATS: 1, the last one with subject 'b', which is ",
        "Dropped messages from NATS: 3, the last one with subject 'b\\\\xff', which is ",
    ]


async def test_number_and_length_of_remembered_subjects_are_bounded() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    views = [*await follow(hub, FakeSubscriber(), "a.*"), *await follow(hub, FakeSubscriber(), "b.*")]
    known = [view.interest.known_subjects for view in views]
    most = 0
    for number in range(10_000):
        for head in ("a", "b"):
            link.deliver(f"{head}.{number}", b"1")
        most = max(most, sum(map(len, known)))
    assert most == 4096
    link.deliver("a." + "x" * 300, b"1")
    assert max(map(len, known[0])) < 20
    await turns()
    assert hub._counters.messages == 20_001
