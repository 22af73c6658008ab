"""The JetStream API against a real nats-server."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from sanic_nats_bridge.nats.supervisor import ConnectionSupervisor
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.streams.jetstream import (
    Batch,
    JetStream,
    JetStreamError,
    JetStreamUnavailable,
    StoredMessage,
    StreamMissing,
    feed_metadata,
    status_of,
)
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_supervisor import Listener
from tests.support.bridge import UNHURRIED, WAIT_SECONDS, until
from tests.support.clock import held
from tests.support.streams import jetstream_fixture

INBOX = "_NATSBRIDGE.app.streams.w.reply"
DIRECT = pytest.mark.parametrize("direct", [True, False], ids=["direct", "singly"])


jetstream = jetstream_fixture("module")


class Harness:
    """A JetStream API over a supervised connection, and the client of a publisher."""

    def __init__(self, supervisor: ConnectionSupervisor, api: JetStream, client: Client, prefix: str) -> None:
        self.supervisor = supervisor
        self.api = api
        self.client = client
        self._prefix = prefix

    async def ask(self, operation: str, **request: Any) -> dict[str, Any]:
        reply = await self.client.request(f"{self._prefix}{operation}", json.dumps(request).encode(), WAIT_SECONDS)
        answer: dict[str, Any] = json.loads(reply.data)
        assert "error" not in answer, answer
        return answer

    async def add_stream(self, name: str = "S", *subjects: str, **config: Any) -> None:
        config = {"name": name, "subjects": subjects or ["o.>"], "storage": "memory", "allow_direct": True} | config
        await self.ask(f"STREAM.CREATE.{name}", **config)

    async def publish(self, *subjects: str, payload: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Publish a message to each subject, and wait until the last one is stored."""
        for number, subject in enumerate(subjects[:-1]):
            await self.client.publish(subject, payload or b"%d" % number, headers=headers)
        last = payload or b"%d" % (len(subjects) - 1)
        reply = await self.client.request(subjects[-1], last, WAIT_SECONDS, headers=headers)
        assert "seq" in json.loads(reply.data), reply.data


@contextlib.asynccontextmanager
async def connected(server: NatsServer, *, domain: str | None = None, **settings: Any) -> AsyncIterator[Harness]:
    listener = Listener()
    supervisor = ConnectionSupervisor(
        Settings.resolve({**UNHURRIED, "servers": server.url} | settings, {}),
        on_established=lambda: api.established(),
        on_closed=lambda: api.closed(),
        on_connected=lambda: None,
    )
    api = JetStream(supervisor, INBOX, domain=domain, timeout=WAIT_SECONDS)
    supervisor.start(listener)
    client = await nats.connect(server.url)
    prefix = "$JS.API." if domain is None else f"$JS.{domain}.API."
    harness = Harness(supervisor, api, client, prefix)
    try:
        await until(lambda: listener.changes == ["up"])
        yield harness
        await delete_streams(harness)
    finally:
        await supervisor.stop()
        await client.close()


async def delete_streams(harness: Harness) -> None:
    if harness.client.is_connected:
        for name in (await harness.ask("STREAM.NAMES"))["streams"] or ():
            await harness.ask(f"STREAM.DELETE.{name}")


def found(batch: Batch) -> list[tuple[int, str, bytes]]:
    return [(message.seq, message.subject, message.payload) for message in batch.messages]


class Deliveries:
    """A listener for the deliver subject of a consumer."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes, bytes, bytes]] = []

    @property
    def stored(self) -> list[tuple[bytes, bytes, bytes, bytes]]:
        """The messages without flow control and heartbeats."""
        return [message for message in self.messages if not status_of(message[2])]

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        self.messages.append((subject, reply, headers, payload))

    def confirmed(self) -> None: ...

    def refused(self) -> None: ...


# Streams


async def test_stream_info_describes_configuration_and_state(jetstream: NatsServer) -> None:
    async with connected(jetstream) as harness:
        limits = {"max_msgs_per_subject": 5, "max_age": 3_600_000_000_000, "max_msgs": 100, "max_bytes": 10_000}
        await harness.add_stream("S", "o.>", "p.*", **limits)
        empty = await harness.api.stream_info("S")
        assert (empty.first_seq, empty.last_seq, empty.first_time, empty.last_time, empty.messages) == (0, 0, 0, 0, 0)
        await harness.publish("o.1", "p.2")
        info = await harness.api.stream_info("S")
        assert (info.name, info.subjects, info.retention) == ("S", ("o.>", "p.*"), "limits")
        assert (info.first_seq, info.last_seq, info.messages, info.created) == (1, 2, 2, empty.created)
        first, last = (await harness.api.fetch("S", 1, ">")).messages
        assert (info.first_time, info.last_time) == (first.time, last.time)
        shown = (info.max_msgs_per_subject, info.max_age_ns, info.max_msgs, info.max_bytes)
        assert shown == tuple(limits.values())
        assert (info.storage, info.allow_direct, info.num_replicas) == ("memory", True, 1)
        assert (info.is_mirror, info.has_sources, info.has_transform) == (False, False, False)
        await harness.add_stream("M", subjects=None, mirror={"name": "S"})
        await harness.add_stream("T", "t.>", subject_transform={"src": "t.>", "dest": "x.>"})
        await harness.add_stream("C", "c", sources=[{"name": "S"}], allow_direct=False)
        assert (await harness.api.stream_info("M")).is_mirror
        assert (await harness.api.stream_info("T")).has_transform
        copied = await harness.api.stream_info("C")
        assert copied.has_sources
        assert not copied.allow_direct


async def test_missing_stream(jetstream: NatsServer) -> None:
    async with connected(jetstream) as harness:
        api = harness.api
        for asked in (
            api.stream_info("NONE"),
            api.create_feed("NONE", "c", "d", 1),
            api.create_snapshot("NONE", "c", "d", [">"]),
            api.next_message("NONE", 1, ">"),
            api.fetch("NONE", 1, ">", allow_direct=False),
        ):
            with pytest.raises(StreamMissing, match="stream not found") as error:
                await asked
            assert (error.value.code, error.value.err_code) == (404, 10059)
        await api.delete_consumer("NONE", "c")
        with pytest.raises(JetStreamUnavailable, match="503"):
            await api.fetch("NONE", 1, ">")


async def test_creation_time_survives_restart_and_differs_after_recreation() -> None:
    with NatsServer(jetstream=True) as server:
        async with connected(server) as harness:
            await harness.add_stream(storage="file")
            created = (await harness.api.stream_info("S")).created
        async with connected(server) as harness:
            await harness.add_stream(storage="file")
            recreated = (await harness.api.stream_info("S")).created
            assert recreated != created
            await harness.client.close()
        server.restart()
        async with connected(server) as harness:
            assert (await harness.api.stream_info("S")).created == recreated


async def test_server_without_jetstream_is_unavailable(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as harness:
        with pytest.raises(JetStreamUnavailable, match=r"listen to \$JS.API.STREAM.INFO.S"):
            await harness.api.stream_info("S")
        await harness.client.close()


async def test_domain_is_part_of_the_subjects() -> None:
    with NatsServer(jetstream=True, config="jetstream { domain: hub }") as server:
        async with connected(server, domain="hub") as harness:
            await harness.add_stream()
            await harness.publish("o.1")
            assert (await harness.api.stream_info("S")).last_seq == 1
            assert len((await harness.api.fetch("S", 1, ">")).messages) == 1
        async with connected(server, domain="other") as harness:
            with pytest.raises(JetStreamUnavailable):
                await harness.api.stream_info("S")
            await harness.client.close()


PERMISSIONS = """authorization {{ users: [
  {{ user: u, password: p, permissions: {{ publish: {{ deny: {publish} }}, subscribe: {{ deny: {subscribe} }} }} }},
] }}
no_auth_user: u"""


@pytest.mark.parametrize("direct", [True, False])
async def test_messages_between_two_sequences_are_counted(jetstream: NatsServer, direct: bool) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream(allow_direct=direct)
        await harness.publish(*["o.1", "o.2", "o.1"] * 5)
        await harness.ask("STREAM.MSG.DELETE.S", seq=3)
        for pattern, begin, end, count in (
            ("o.1", 1, 7, 3),
            ("o.1", 1, 16, 9),
            ("o.2", 3, 5, 0),
            (">", 1, 15, 13),
            ("x", 1, 9, 0),
        ):
            assert await harness.api.count_between("S", pattern, begin, end) == count
        assert not (await harness.ask("CONSUMER.NAMES.S"))["consumers"]


async def test_missing_publish_permission_is_named() -> None:
    denied = PERMISSIONS.format(publish='["$JS.API.STREAM.INFO.S", "$JS.API.DIRECT.>"]', subscribe="[never]")
    with NatsServer(jetstream=True, config=denied) as server:
        # The clock passes the timeouts of the requests, but not the next PING.
        async with connected(server, ping_interval=10 * WAIT_SECONDS) as harness:
            await harness.add_stream()
            async with held() as clock:
                for asked in (harness.api.stream_info("S"), harness.api.fetch("S", 1, ">")):
                    task = asyncio.ensure_future(asked)
                    await clock.forward_until(task.done, step=WAIT_SECONDS / 4)
                    with pytest.raises(
                        JetStreamUnavailable, match=r"may publish to \$JS.API.(STREAM.INFO|DIRECT.GET).S"
                    ):
                        await task
            assert await harness.api.next_message("S", 1, ">") is None


async def test_missing_subscribe_permission_is_named() -> None:
    denied = PERMISSIONS.format(publish="[never]", subscribe=f'["{INBOX}.>"]')
    with NatsServer(jetstream=True, config=denied) as server:
        async with connected(server) as harness:
            for _ in range(2):
                with pytest.raises(JetStreamUnavailable, match="may not subscribe to _NATSBRIDGE"):
                    await harness.api.stream_info("S")


# Messages


@DIRECT
async def test_fetch_returns_messages_of_pattern_in_order(jetstream: NatsServer, direct: bool) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream(allow_direct=direct)
        await harness.publish("o.1", "o.2", "o.1", "o.3", "o.1")
        await harness.publish("o.2", payload=b"last", headers={"A": "1", "B": "2"})
        fetch = harness.api.fetch
        batch = await fetch("S", 0, "o.1", allow_direct=direct)
        assert found(batch) == [(1, "o.1", b"0"), (3, "o.1", b"2"), (5, "o.1", b"4")]
        assert (batch.is_end, batch.pending) == (True, 0)
        assert found(await fetch("S", 2, "o.*", allow_direct=direct))[0] == (2, "o.2", b"1")
        batch = await fetch("S", 2, "o.1", batch=1, allow_direct=direct)
        assert [message.seq for message in batch.messages] == [3]
        assert (batch.is_end, batch.pending) == (False, 1 if direct else -1)
        (message,) = (await fetch("S", 6, ">", allow_direct=direct)).messages
        assert message.headers == b"NATS/1.0\r\nA: 1\r\nB: 2\r\n\r\n"
        assert message == await harness.api.next_message("S", 6, "o.2")
        assert message.time == (await harness.api.stream_info("S")).last_time


@DIRECT
async def test_nothing_found_is_an_end(jetstream: NatsServer, direct: bool) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream(allow_direct=direct)
        for pattern, seq in (("o.>", 1), ("x", 1), ("o.>", 9)):
            assert await harness.api.fetch("S", seq, pattern, allow_direct=direct) == Batch([], is_end=True, pending=0)
            await harness.publish("o.1")
        assert await harness.api.next_message("S", 9, "o.>") is None
        assert await harness.api.next_message("S", 1, "x") is None


@DIRECT
async def test_batch_skips_deleted_messages(jetstream: NatsServer, direct: bool) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream(allow_direct=direct)
        await harness.publish(*["o.1", "o.2"] * 20)
        deleted = random.Random(1).sample(range(2, 40), 15)
        for seq in deleted:
            await harness.ask("STREAM.MSG.DELETE.S", seq=seq)
        batch = await harness.api.fetch("S", 1, ">", allow_direct=direct)
        assert [message.seq for message in batch.messages] == [seq for seq in range(1, 41) if seq not in deleted]
        await harness.ask("STREAM.PURGE.S", seq=30)
        batch = await harness.api.fetch("S", 1, "o.1", allow_direct=direct)
        assert [message.seq for message in batch.messages] == [seq for seq in range(31, 41, 2) if seq not in deleted]


@DIRECT
async def test_batch_is_bounded_by_number_and_size(jetstream: NatsServer, direct: bool) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream(allow_direct=direct)
        await harness.publish(*["o.1"] * 300, payload=b"x" * 2_000)
        assert len((await harness.api.fetch("S", 1, ">", allow_direct=direct)).messages) in range(120, 133)
        assert len((await harness.api.fetch("S", 1, ">", max_bytes=1, allow_direct=direct)).messages) == 1
        batch = await harness.api.fetch("S", 1, ">", batch=7, allow_direct=direct)
        assert (len(batch.messages), batch.is_end) == (7, False)


@DIRECT
async def test_large_message_is_returned(jetstream: NatsServer, direct: bool) -> None:
    # As JSON, the largest messages would exceed max_payload, and end the connection.
    size = 1_048_576 if direct else 700_000
    async with connected(jetstream) as harness:
        await harness.add_stream(allow_direct=direct)
        await harness.publish("o.1", payload=b"x" * size)
        (message,) = (await harness.api.fetch("S", 1, ">", allow_direct=direct)).messages
        assert len(message.payload) == size


FORGED = b"NATS/1.0\r\nNats-Stream: X\r\nNats-Subject: x\r\nNats-Sequence: 99\r\nNats-Last-Sequence: 7\r\n\r\n"
ENDED = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 1\r\n\r\n"


async def test_publisher_cannot_forge_sequences_or_ends(jetstream: NatsServer) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream()
        reader, writer = await asyncio.open_connection("127.0.0.1", jetstream.port)
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        blocks = [
            FORGED,
            ENDED,
            b"NATS/1.0 404\r\n\r\n",
            b"NATS/1.0\r\nX: 1",
            b"NATS/1.0\r\n\r\n",
            b"x",
            b"y\r\nZ: 1\r\n\r\n",
        ]
        for block in blocks:
            writer.write(b"HPUB o.1 %d %d\r\n%bab\r\n" % (len(block), len(block) + 2, block))
        for subject in (b"o.\r", b"o.\x0b\x00.\r.x", b"o.\xff"):
            writer.write(b"PUB %b 2\r\nab\r\n" % subject)
        writer.write(b"PING\r\n")
        while not (line := await reader.readline()).startswith(b"PONG"):
            assert line.startswith(b"INFO"), line
        writer.close()
        batch = await harness.api.fetch("S", 1, ">")
        assert [message.seq for message in batch.messages] == list(range(1, 11))
        assert [message.subject for message in batch.messages] == ["o.1"] * 7 + ["o.\r", "o.\x0b\x00.\r.x", ""]
        assert {message.payload for message in batch.messages} == {b"ab"}
        assert batch.messages[0].headers == FORGED
        assert batch.messages[4].headers == b""
        last = await harness.api.last_message("S", "o.1")
        assert last is not None
        assert last.seq == 7


# Consumers


async def test_feed_delivers_whole_stream_from_a_sequence_on(jetstream: NatsServer) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream()
        await harness.publish("o.1", "o.2", "o.3")
        deliveries = Deliveries()
        harness.supervisor.subscribe_control("_NATSBRIDGE.feed", deliveries)
        await harness.api.create_feed("S", "feed", "_NATSBRIDGE.feed", 2)
        await harness.publish("o.4")
        await until(lambda: len(deliveries.messages) == 3)
        stored = (await harness.api.fetch("S", 2, ">")).messages
        metadata = [feed_metadata(reply) for _, reply, _, _ in deliveries.messages]
        assert [(each[0], each[1], each[2]) for each in metadata if each] == [
            (message.seq, number, message.time) for number, message in enumerate(stored, 1)
        ]
        assert metadata[-1] is not None
        assert metadata[-1][3] == 0
        (info,) = (await harness.ask("CONSUMER.LIST.S"))["consumers"]
        config = {name: value for name, value in info["config"].items() if name != "metadata"}
        assert config == {
            "name": "feed", "deliver_policy": "by_start_sequence", "opt_start_seq": 2, "ack_policy": "none",
            "max_deliver": 1, "replay_policy": "instant", "flow_control": True, "deliver_subject": "_NATSBRIDGE.feed",
            "idle_heartbeat": 5_000_000_000, "inactive_threshold": 30_000_000_000, "num_replicas": 1,
            "mem_storage": True,
        }  # fmt: skip
        await harness.api.delete_consumer("S", "feed")
        await harness.api.delete_consumer("S", "feed")
        assert not (await harness.ask("CONSUMER.LIST.S"))["consumers"]


async def test_feed_from_the_beginning_has_sequence_one(jetstream: NatsServer) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream()
        await harness.api.create_feed("S", "feed", "_NATSBRIDGE.feed", 0)
        (info,) = (await harness.ask("CONSUMER.LIST.S"))["consumers"]
        assert info["config"]["opt_start_seq"] == 1


@pytest.mark.parametrize("patterns", [["o.>"], ["o.a.>", "o.b.*"]])
async def test_snapshot_delivers_last_message_of_each_subject(jetstream: NatsServer, patterns: list[str]) -> None:
    subjects = [f"o.{'ab'[number % 2]}.{number}" for number in range(2_000)]
    async with connected(jetstream) as harness:
        await harness.add_stream()
        await harness.publish(*subjects)
        await harness.publish(*subjects, payload=b"new")
        deliveries = Deliveries()
        harness.supervisor.subscribe_control("_NATSBRIDGE.snapshot", deliveries)
        assert await harness.api.create_snapshot("S", "one", "_NATSBRIDGE.snapshot", patterns) == 2_000
        await until(lambda: len(deliveries.stored) == 2_000)
        messages = deliveries.stored
        assert {payload for *_, payload in messages} == {b"new"}
        assert [subject.decode() for subject, *_ in messages] == subjects
        last = feed_metadata(messages[-1][1])
        assert last is not None
        assert (last[0], last[1], last[3]) == (4_000, 2_000, 0)


async def test_snapshot_of_nothing_and_of_overlapping_patterns(jetstream: NatsServer) -> None:
    async with connected(jetstream) as harness:
        await harness.add_stream()
        assert await harness.api.create_snapshot("S", "none", "d", ["o.none"]) == 0
        with pytest.raises(JetStreamError, match="overlap") as error:
            await harness.api.create_snapshot("S", "two", "d", ["o.>", "o.1"])
        assert error.value.err_code == 10138


# The last messages


@DIRECT
@pytest.mark.parametrize("total", [50, 800, 4_000])
async def test_first_of_last_agrees_with_brute_force(jetstream: NatsServer, direct: bool, total: int) -> None:
    generator = random.Random(total)
    async with connected(jetstream) as harness:
        await harness.add_stream(allow_direct=direct)
        weights = [generator.random() ** 4 + 0.001 for _ in range(6)]
        subjects = generator.choices([f"o.{number}" for number in range(6)], weights, k=total)
        subjects.sort(key=lambda subject: (generator.random() < 0.5, subject))
        await harness.publish(*subjects)
        for seq in generator.sample(range(1, total), total // 10):
            await harness.ask("STREAM.MSG.DELETE.S", seq=seq)
        stored: list[StoredMessage] = []
        is_end = False
        while not is_end:
            batch = await harness.api.fetch("S", stored[-1].seq + 1 if stored else 1, ">", allow_direct=direct)
            stored += batch.messages
            is_end = batch.is_end
        info = await harness.api.stream_info("S")
        for pattern in ("o.>", "o.1", "o.5", "o.none"):
            seqs = [each.seq for each in stored if pattern in ("o.>", each.subject)]
            for count in (1, 2, 10, 100, 1_000, 5_000):
                start, is_older = await harness.api.first_of_last("S", pattern, count, info)
                assert [seq for seq in seqs if seq >= start] == seqs[-count:]
                assert is_older is (len(seqs) > count)
        assert not (await harness.ask("CONSUMER.NAMES.S"))["consumers"]


# Faults


async def test_requests_in_progress_fail_when_the_server_is_killed() -> None:
    with NatsServer(jetstream=True) as server:
        async with connected(server) as harness:
            await harness.add_stream(storage="file")
            await harness.publish(*["o.1"] * 20, payload=b"x" * 100_000)
            # nats-py can't always close a client that reconnects.
            await harness.client.close()
            server.pause()
            asked = [
                asyncio.ensure_future(each)
                for each in (
                    harness.api.fetch("S", 1, ">"),
                    harness.api.next_message("S", 1, ">"),
                    harness.api.stream_info("S"),
                )
            ]
            await asyncio.sleep(0)
            server.kill()
            for result in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(result, JetStreamUnavailable)
                assert str(result) == "NATS is disconnected"
            with pytest.raises(JetStreamUnavailable, match="disconnected"):
                await harness.api.stream_info("S")
            server.start()
            await until(lambda: harness.supervisor.client is not None)
            assert (await harness.api.fetch("S", 1, ">", batch=1)).messages[0].seq == 1


async def test_reads_during_kills_are_complete_or_fail() -> None:
    generator = random.Random(7)
    starts = range(1, 400, 5)
    with NatsServer(jetstream=True) as server:
        async with connected(server) as harness:
            await harness.add_stream(storage="file")
            await harness.publish(*["o.1"] * 500, payload=b"x" * 500)
            await harness.client.close()
            for _ in range(3):
                reads = [asyncio.ensure_future(harness.api.fetch("S", seq, ">", batch=100)) for seq in starts[:-1]]
                for _ in range(generator.randrange(20)):
                    await asyncio.sleep(0)
                server.pause()
                reads.append(asyncio.ensure_future(harness.api.fetch("S", starts[-1], ">", batch=100)))
                await asyncio.sleep(0)
                server.kill()
                results = await asyncio.gather(*reads, return_exceptions=True)
                for seq, result in zip(starts, results, strict=True):
                    if isinstance(result, Batch):
                        assert [message.seq for message in result.messages] == list(range(seq, seq + 100))
                    else:
                        assert isinstance(result, JetStreamUnavailable)
                assert isinstance(results[-1], JetStreamUnavailable)
                server.start()
                await until(lambda: harness.supervisor.client is not None)
