import asyncio

import nats.errors
import pytest

from sanic_nats_bridge.streams.jetstream import JetStream, JetStreamError, JetStreamUnavailable
from tests.unit.streams.test_answers import INFO, block, encoded, end
from tests.unit.streams.test_jetstream import FakeLink, answered, silent, started


async def test_requests_use_the_inbox_and_the_domain() -> None:
    link = FakeLink(lambda _: [(b"", encoded(INFO))])
    jetstream = JetStream(link, "_BRIDGE.reply", domain="hub")
    jetstream.established()
    assert link.subject == "_BRIDGE.reply.*"
    assert (await jetstream.stream_info("S")).name == "S"
    await jetstream.stream_info("T")
    subjects = [(subject, reply) for subject, _, reply in link.client.published]
    assert subjects == [
        ("$JS.hub.API.STREAM.INFO.S", "_BRIDGE.reply.1"),
        ("$JS.hub.API.STREAM.INFO.T", "_BRIDGE.reply.2"),
    ]


async def test_request_fails_without_connection_or_subscription() -> None:
    jetstream = JetStream(FakeLink(), "r")
    with pytest.raises(JetStreamUnavailable, match="NATS is disconnected"):
        await jetstream.stream_info("S")
    jetstream, link = answered((b"", encoded(INFO)))
    link.client = None
    with pytest.raises(JetStreamUnavailable, match="NATS is disconnected"):
        await jetstream.stream_info("S")
    jetstream, link = answered((b"", encoded(INFO)))
    jetstream.closed()
    with pytest.raises(JetStreamUnavailable, match="NATS is disconnected"):
        await jetstream.stream_info("S")
    jetstream.established()
    assert await jetstream.stream_info("S")


async def test_request_without_answer_ends_after_its_time() -> None:
    jetstream, _ = silent()
    loop = asyncio.get_running_loop()
    for asked in (jetstream.stream_info("S"), jetstream.fetch("S", 1, ">")):
        began = loop.time()
        with pytest.raises(JetStreamUnavailable, match=r"in 5 s.* may publish to \$JS.API"):
            await asked
        assert loop.time() == began + 5


async def test_batch_without_end_is_unavailable() -> None:
    jetstream, _ = answered((block(1, 0), b"a"), (block(2, 1), b"b"))
    with pytest.raises(JetStreamUnavailable, match="no complete answer"):
        await jetstream.fetch("S", 1, ">")


async def test_late_replies_reach_no_later_request() -> None:
    jetstream, link = silent()
    task = await started(jetstream.fetch("S", 1, ">"))
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    later = await started(jetstream.fetch("S", 1, ">"))
    for number, reply in ((1, "early"), (2, "late")):
        link.deliver(f"_BRIDGE.streams.w.reply.{number}", block(number, 0), reply.encode())
        link.deliver(f"_BRIDGE.streams.w.reply.{number}", *end(number))
        link.deliver(f"_BRIDGE.streams.w.reply.{number}", *end(number))
    link.deliver("_BRIDGE.streams.w.reply.x", *end(1))
    assert [message.payload for message in (await later).messages] == [b"late"]


@pytest.mark.parametrize("end_of_connection", ["closed", "refused"])
async def test_requests_in_progress_fail_at_once(end_of_connection: str) -> None:
    jetstream, link = silent()
    tasks = [await started(jetstream.stream_info("S")), await started(jetstream.fetch("S", 1, ">"))]
    link.deliver("_BRIDGE.streams.w.reply.2", block(1, 0), b"a")
    at = asyncio.get_running_loop().time()
    if end_of_connection == "closed":
        jetstream.closed()
    else:
        assert link.listener is not None
        link.listener.confirmed()
        link.listener.refused()
    for task in tasks:
        with pytest.raises(
            JetStreamUnavailable, match=r"disconnected|may not subscribe to _BRIDGE\.streams\.w\.reply\.\*"
        ):
            await task
    assert asyncio.get_running_loop().time() == at


async def test_cancelled_request_that_fails_meanwhile_is_cancelled() -> None:
    jetstream, _ = silent()
    task = await started(jetstream.stream_info("S"))
    jetstream.closed()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_number_of_requests_in_progress_is_bounded() -> None:
    jetstream, _ = silent()
    tasks = [await started(jetstream.stream_info("S")) for _ in range(1_024)]
    with pytest.raises(JetStreamUnavailable, match="1024 requests are in progress"):
        await jetstream.stream_info("S")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with pytest.raises(JetStreamUnavailable, match="no complete answer"):
        await jetstream.stream_info("S")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (nats.errors.ConnectionClosedError(), JetStreamUnavailable),
        (nats.errors.OutboundBufferLimitError(), JetStreamUnavailable),
        (nats.errors.TimeoutError(), JetStreamUnavailable),
        (nats.errors.MaxPayloadError(), JetStreamError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_errors_of_the_client(error: Exception, kind: type[JetStreamError]) -> None:
    jetstream, link = silent()
    link.client.error = error
    with pytest.raises(JetStreamError) as raised:
        await jetstream.stream_info("S")
    assert type(raised.value) is kind


async def test_nothing_is_sent_while_nats_takes_no_data() -> None:
    jetstream, link = answered((b"", encoded(INFO)))
    link.client.pending_data_size = 2**21
    with pytest.raises(JetStreamUnavailable, match="accepts no data"):
        await jetstream.stream_info("S")
    assert link.client.published == []


async def test_more_messages_than_were_asked_for_are_an_error() -> None:
    jetstream, _ = answered(*[(block(seq, seq - 1), b"a") for seq in range(1, 1_000)])
    with pytest.raises(JetStreamError, match="more messages"):
        await jetstream.fetch("S", 1, ">", batch=2)
    with pytest.raises(JetStreamError, match="more messages"):
        await jetstream.fetch("S", 1, ">", max_bytes=100)


async def test_largest_batch_is_accepted() -> None:
    jetstream, _ = answered(*[(block(seq, seq - 1), b"a" * 50) for seq in range(1, 4)], end(3))
    assert len((await jetstream.fetch("S", 1, ">", batch=3, max_bytes=101)).messages) == 3
