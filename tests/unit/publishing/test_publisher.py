import asyncio
from collections.abc import AsyncIterator

import pytest

from sanic_nats_bridge.errors import (
    NatsRefused,
    NatsUnavailable,
    PublishUnknown,
    RequestTimedOut,
    SizeLimitExceeded,
)
from sanic_nats_bridge.publishing.publisher import Publisher
from tests.support.clock import turns
from tests.support.fakes import FakeOutlet, FakePublishLink

STORED = b'{"stream":"S","seq":1}'


class Publishing:
    """A publisher on a connection of its own."""

    def __init__(self) -> None:
        self.link = FakePublishLink()
        self.publisher = Publisher(self.link)

    @property
    def outlet(self) -> FakeOutlet:
        assert self.link.connection is not None
        return self.link.connection


@pytest.fixture
async def publishing() -> AsyncIterator[Publishing]:
    started = Publishing()
    started.publisher.start("_BRIDGE.answer.w")
    started.publisher.established()
    yield started
    started.publisher.stop()
    await turns()
    assert started.publisher.in_progress == 0


async def test_message_is_written_before_send_returns(publishing: Publishing) -> None:
    publishing.publisher.send("a.b", b"1", b"NATS/1.0\r\n\r\n")
    assert publishing.outlet.messages == [(b"a.b", b"1", b"NATS/1.0\r\n\r\n")]


async def test_all_kinds_of_messages_leave_in_order(publishing: Publishing) -> None:
    publishing.publisher.send("a", b"1")
    publishing.publisher.store("a", b"2")
    publishing.publisher.request("a", b"3", seconds=5)
    publishing.publisher.send("a", b"4")
    assert [payload for _, payload, _ in publishing.outlet.messages] == [b"1", b"2", b"3", b"4"]


async def test_results_come_with_the_answers(publishing: Publishing) -> None:
    stored, answered = publishing.publisher.store("a", b""), publishing.publisher.request("svc", b"", seconds=5)
    publishing.outlet.answer(STORED, sid=1)
    publishing.outlet.answer(b"9.5", sid=2)
    assert (await stored).sequence == 1
    assert (await answered).data == b"9.5"


@pytest.mark.parametrize("kind", ["send", "store", "request"])
async def test_nothing_is_written_that_cannot_leave(publishing: Publishing, kind: str) -> None:
    publisher, outlet = publishing.publisher, publishing.outlet

    def publish(subject: str = "a", payload: bytes = b"", headers: bytes = b"") -> None:
        if kind == "request":
            publisher.request(subject, payload, headers, seconds=5)
        else:
            getattr(publisher, kind)(subject, payload, headers)

    for payload, headers in ((b"x" * 1025, b""), (b"x" * 1000, b"h" * 25)):
        with pytest.raises(SizeLimitExceeded, match="at most 1024 bytes with headers"):
            publish(payload=payload, headers=headers)
    outlet.unsent_bytes = 4 * 1024 * 1024 + 1
    with pytest.raises(NatsUnavailable, match="NATS accepts no data"):
        publish()
    outlet.unsent_bytes = 0
    outlet.refused_subject_length = 50
    with pytest.raises(NatsRefused, match="no subject of this length"):
        publish("x" * 50)
    outlet.refused_subject_length = 1000
    publishing.link.connection = None
    with pytest.raises(NatsUnavailable, match="NATS is disconnected"):
        publish()
    assert not outlet.messages
    assert publisher.in_progress == 0
    publishing.link.connection = outlet
    publish("x" * 50, b"x" * 1000, b"h" * 24)
    assert len(outlet.messages) == 1


async def test_subject_for_the_answer_counts_in_the_length(publishing: Publishing) -> None:
    publishing.outlet.refused_subject_length = len("_BRIDGE.answer.w.") + 22 + 10
    publishing.publisher.send("x" * 30, b"")
    publishing.publisher.store("x" * 9, b"")
    for ask in (publishing.publisher.store, lambda *parts: publishing.publisher.request(*parts, seconds=5)):
        with pytest.raises(NatsRefused):
            ask("x" * 10, b"")


async def test_missing_answers_have_errors_of_their_own(publishing: Publishing) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(PublishUnknown, match="Not acknowledged within 4 s; it may have been stored"):
        await publishing.publisher.store("a", b"")
    assert loop.time() == began + 4
    with pytest.raises(RequestTimedOut, match=r"No answer within 0\.5 s"):
        await publishing.publisher.request("a", b"", seconds=0.5)
    assert loop.time() == began + 4.5


async def test_end_of_the_connection_ends_publishes_and_requests(publishing: Publishing) -> None:
    stored, answered = publishing.publisher.store("a", b""), publishing.publisher.request("svc", b"", seconds=5)
    publishing.publisher.closed()
    with pytest.raises(PublishUnknown, match="because NATS is disconnected; it may have been stored"):
        await stored
    with pytest.raises(NatsUnavailable, match="No answer, because NATS is disconnected"):
        await answered


async def test_denied_publish_ends_those_on_its_subject(publishing: Publishing) -> None:
    stored, other = publishing.publisher.store("a", b""), publishing.publisher.store("b", b"")
    publishing.publisher.denied("a")
    with pytest.raises(NatsRefused):
        await stored
    assert not other.done()


async def test_connected_waits_for_a_connection(publishing: Publishing) -> None:
    publisher = publishing.publisher
    await publisher.connected()
    publisher.closed()
    with pytest.raises(NatsUnavailable, match="NATS is disconnected"):
        await publisher.connected(5)
    waiting = asyncio.create_task(publisher.connected())
    await turns()
    assert not waiting.done()
    publisher.established()
    await waiting


async def test_stop_ends_all_that_wait(publishing: Publishing) -> None:
    publisher = publishing.publisher
    publisher.closed()
    waiting = asyncio.create_task(publisher.connected())
    await turns()
    stored = publisher.store("a", b"")
    publisher.stop()
    publisher.closed()
    for ended in (waiting, publisher.connected()):
        with pytest.raises(NatsUnavailable, match="this worker is stopping"):
            await ended
    with pytest.raises(PublishUnknown, match="because this worker is stopping"):
        await stored
    publisher.start("_BRIDGE.answer.w")
    publisher.established()
    await publisher.connected()


async def test_nothing_can_wait_before_the_start() -> None:
    publisher = Publishing().publisher
    with pytest.raises(RuntimeError, match="wait in after_server_start or later"):
        await publisher.connected()
    publisher.established()
    publisher.closed()
    publisher.stop()


async def test_room_waits_until_nats_accepts_data_or_is_disconnected(publishing: Publishing) -> None:
    loop, outlet = asyncio.get_running_loop(), publishing.outlet
    await publishing.publisher.room()
    for freed in (lambda: setattr(outlet, "unsent_bytes", 0), lambda: setattr(publishing.link, "connection", None)):
        outlet.unsent_bytes = 5 * 1024 * 1024
        began = loop.time()
        loop.call_later(1, freed)
        await publishing.publisher.room()
        assert loop.time() >= began + 1
