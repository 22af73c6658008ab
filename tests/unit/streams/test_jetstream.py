import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from sanic_nats_bridge.nats.interfaces import ControlListener
from sanic_nats_bridge.streams.answers import stream_info
from sanic_nats_bridge.streams.jetstream import Batch, JetStream, JetStreamError, JetStreamUnavailable
from tests.support.clock import turns
from tests.unit.streams.test_answers import INFO, MESSAGE, NOT_FOUND, block, encoded, end

Replies = list[tuple[bytes, bytes]]


class FakeClient:
    """A NATS server that answers requests by a function of the test."""

    def __init__(self, link: "FakeLink") -> None:
        self._link = link
        self.pending_data_size = 0
        self.published: list[tuple[str, Any, str]] = []
        self.error: Exception | None = None

    async def publish(self, subject: str, payload: bytes, reply: str) -> None:
        if self.error is not None:
            raise self.error
        self.published.append((subject, json.loads(payload or b"null"), reply))
        for headers, answer in self._link.answer(subject):
            self._link.deliver(reply, headers, answer)


class FakeLink:
    """A connection to NATS, which is disconnected while there is no client."""

    def __init__(self, answer: Callable[[str], Replies] = lambda _: []) -> None:
        self.answer = answer
        self.client: Any = FakeClient(self)
        self.subject = ""
        self.listener: ControlListener | None = None

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        self.subject, self.listener = subject, listener
        return None if self.client is None else 7

    def unsubscribe(self, sid: int) -> None:
        raise AssertionError

    def deliver(self, subject: str, headers: bytes, payload: bytes) -> None:
        assert self.listener is not None
        self.listener.on_message(subject.encode(), b"", headers, payload)


def answered(*replies: tuple[bytes, bytes]) -> tuple[JetStream, FakeLink]:
    link = FakeLink(lambda _: list(replies))
    jetstream = JetStream(link, "_BRIDGE.streams.w.reply")
    jetstream.established()
    return jetstream, link


def silent() -> tuple[JetStream, FakeLink]:
    return answered()


async def started(asked: Any) -> "asyncio.Task[Any]":
    task: asyncio.Task[Any] = asyncio.ensure_future(asked)
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize(
    ("setting", "of_server", "api"),
    [
        (None, "", "$JS.API."),
        (None, "hub", "$JS.API."),
        ("hub", "", "$JS.hub.API."),
        ("hub", "leaf", "$JS.hub.API."),
        ("hub", "hub", "$JS.API."),
    ],
)
async def test_domain_of_the_server_is_not_named(setting: str | None, of_server: str, api: str) -> None:
    link = FakeLink(lambda _: [(b"", encoded(INFO))])
    jetstream = JetStream(link, "_BRIDGE.streams.w.reply", domain=setting)
    jetstream.established("leaf")
    # Each connection may be to another server.
    jetstream.established(of_server)
    await jetstream.stream_info("S")
    assert link.client.published[-1][0] == f"{api}STREAM.INFO.S"


async def test_no_responders_are_unavailable() -> None:
    jetstream, _ = answered((b"NATS/1.0 503\r\n\r\n", b""))
    with pytest.raises(JetStreamUnavailable, match=r"JetStream doesn't listen to \$JS.API.STREAM.INFO.S"):
        await jetstream.stream_info("S")
    with pytest.raises(JetStreamUnavailable):
        await jetstream.fetch("S", 1, ">")


async def test_batch_request() -> None:
    jetstream, link = answered((block(4, 0), b"a"), end(4, 3))
    batch = await jetstream.fetch("S", 0, "o.>", batch=9, max_bytes=100)
    assert (len(batch.messages), batch.is_end, batch.pending) == (1, False, 3)
    (subject, request, _) = link.client.published[0]
    assert subject == "$JS.API.DIRECT.GET.S"
    assert request == {"seq": 1, "next_by_subj": "o.>", "batch": 9, "max_bytes": 100}


async def test_large_answer_is_an_error() -> None:
    jetstream, _ = answered((b"", encoded(INFO | {"x": "y" * 2**20})))
    with pytest.raises(JetStreamError, match="an answer of 1048"):
        await jetstream.stream_info("S")
    jetstream, _ = answered((b"", encoded({"message": MESSAGE | {"data": "YWJj" * 2**19}})))
    message = await jetstream.next_message("S", 1, ">")
    assert message is not None
    assert len(message.payload) == 3 * 2**19


async def test_messages_are_read_singly_without_direct_get() -> None:
    link = FakeLink()
    seqs = iter([2, 3, 9])

    def answer(_: str) -> Replies:
        seq = next(seqs, None)
        missing = {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}
        return [(b"", encoded(missing if seq is None else {"message": MESSAGE | {"seq": seq}}))]

    link.answer = answer
    jetstream = JetStream(link, "r")
    jetstream.established()
    batch = await jetstream.fetch("S", 0, ">", batch=2, allow_direct=False)
    assert ([message.seq for message in batch.messages], batch.is_end, batch.pending) == ([2, 3], False, -1)
    batch = await jetstream.fetch("S", 4, ">", allow_direct=False)
    assert ([message.seq for message in batch.messages], batch.is_end, batch.pending) == ([9], True, 0)
    assert await jetstream.fetch("S", 10, ">", allow_direct=False) == Batch([], is_end=True, pending=0)
    assert [request["seq"] for _, request, _ in link.client.published] == [1, 3, 4, 10, 10]


async def test_message_before_the_one_that_was_asked_for_is_an_error() -> None:
    jetstream, _ = answered((b"", encoded({"message": MESSAGE})))
    with pytest.raises(JetStreamError, match="before"):
        await jetstream.fetch("S", 10, ">", allow_direct=False)


async def test_gone_consumer_or_stream_needs_no_deletion() -> None:
    for err_code in (10014, 10059):
        jetstream, _ = answered((b"", encoded({"error": {"code": 404, "err_code": err_code}})))
        await jetstream.delete_consumer("S", "c")
    jetstream, _ = answered((b"", encoded({"error": {"code": 500}})))
    with pytest.raises(JetStreamError):
        await jetstream.delete_consumer("S", "c")


async def test_last_messages_of_pattern_without_messages_begin_after_the_stream() -> None:
    jetstream, link = answered(NOT_FOUND)
    info = stream_info(encoded(INFO | {"config": INFO["config"] | {"allow_direct": True}}))
    assert await jetstream.first_of_last("S", "o.1", 10, info) == (10, False)
    assert [subject for subject, *_ in link.client.published] == ["$JS.API.DIRECT.GET.S"]


async def test_last_message() -> None:
    jetstream, link = answered((block(9, 0), b"a"))
    last = await jetstream.last_message("S", "o.1")
    assert last is not None
    assert last.seq == 9
    assert link.client.published[0][1] == {"last_by_subj": "o.1"}


async def test_requests_within_turns_wait_for_one_another() -> None:
    jetstream, link = answered()
    limited = jetstream.within(asyncio.Semaphore(2))
    calls: list[Callable[[], Any]] = [
        lambda: limited.stream_info("S"),
        lambda: limited.next_message("S", 1, ">"),
        lambda: limited.fetch("S", 1, ">"),
        lambda: limited.last_message("S", ">"),
    ]
    tasks = [asyncio.create_task(call()) for call in calls]
    # Another one waits for none of them.
    other = asyncio.create_task(jetstream.stream_info("S"))
    for expected in (3, 4, 5):
        await turns()
        assert len(link.client.published) == expected
        _, _, reply = link.client.published[expected - 3]
        link.deliver(reply, b"", b"{}")
    for task in (*tasks, other):
        task.cancel()
    await asyncio.gather(*tasks, other, return_exceptions=True)


async def test_requests_within_turns_have_the_domain_of_the_present_server() -> None:
    link = FakeLink()
    link.answer = lambda _: [(b"", encoded(INFO))]
    jetstream = JetStream(link, "r", domain="hub")
    limited = jetstream.within(asyncio.Semaphore(1))
    for server, prefix in (("hub", "$JS.API."), ("leaf", "$JS.hub.API.")):
        jetstream.established(server)
        await limited.stream_info("S")
        assert link.client.published[-1][0] == f"{prefix}STREAM.INFO.S"
