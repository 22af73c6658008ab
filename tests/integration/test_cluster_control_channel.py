import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from nats.aio.client import DEFAULT_PENDING_SIZE

from sanic_nats_bridge.cluster.control_channel import ControlChannel, RequestHandler, UnknownWorkerError
from sanic_nats_bridge.cluster.known_workers import KnownWorkers
from sanic_nats_bridge.cluster.signatures import Signatures
from sanic_nats_bridge.nats.connection import Connection, NatsClient
from sanic_nats_bridge.nats.interfaces import ControlListener
from sanic_nats_bridge.protocol.session_ids import new_worker_id
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, until
from tests.support.clock import held


class Listener:
    """A listener without subscriptions."""

    is_full = False

    def on_message(self, sink: Any, subject: bytes, headers: bytes, payload: bytes) -> bool:
        raise AssertionError(subject)

    async def room(self) -> None: ...
    def delivery_failed(self, sink: Any) -> None: ...
    def confirmed(self, sink: Any) -> None: ...
    def refused(self, sink: Any) -> None: ...


class Worker:
    """A worker that echoes requests and records notifications."""

    def __init__(self, prefix: str, *keys: str, max_requests: int = 100) -> None:
        self.dropped: Counter[str] = Counter()
        self.known = KnownWorkers()
        self.client: Connection | None = None
        self.id = new_worker_id()
        self.announcements: list[bytes] = []
        self.ready_when_told: list[bool] = []
        self.received: list[bytes] = []
        self.answer: RequestHandler = self.echo
        self.channel = ControlChannel(
            self,
            prefix,
            on_request=lambda request: self.answer(request),
            on_announcement={"news": self.announcements.append},
            on_ready=self.on_ready,
            signatures=Signatures(keys, self.dropped),
            known=self.known,
            max_requests=max_requests,
            dropped=self.dropped,
        )
        self.channel.start(self.id)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def on_ready(self) -> None:
        self.ready_when_told.append(self.channel.ready)

    async def echo(self, request: bytes) -> bytes:
        self.received.append(request)
        await self.may_answer.wait()
        return b"echo " + request

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        return None if self.client is None else self.client.add_control_subscription(subject, listener)

    def unsubscribe(self, sid: int) -> None:
        assert self.client is not None
        self.client.remove_subscription(sid)

    async def connect(self, url: str) -> None:
        await self.disconnect()
        connection = Connection(Listener())
        await connection.open(servers=url, allow_reconnect=False)
        self.client = connection
        self.channel.established()

    async def disconnect(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            self.channel.closed()
            await client.close()


async def announced_by(worker: Worker) -> None:
    await (await worker.channel.announce("news", b"news"))


@asynccontextmanager
async def workers(url: str, count: int = 2, *keys: str, max_requests: int = 100) -> AsyncIterator[list[Worker]]:
    prefix = f"_T.{uuid4().hex}"
    made = [Worker(prefix, *keys, max_requests=max_requests) for _ in range(count)]
    try:
        for worker in made:
            await worker.connect(url)
            await until(lambda worker=worker: worker.channel.ready and not worker.channel._tasks)  # type: ignore[misc]
        yield made
    finally:
        for worker in made:
            await worker.channel.stop()
            await worker.disconnect()


async def test_request_is_answered_by_worker_with_given_id(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, 3) as (one, two, three):
        asked = [
            one.channel.request(other.id, b"%d" % number, WAIT_SECONDS)
            for number in range(20)
            for other in (two, three)
        ]
        assert await asyncio.gather(*asked) == [b"echo %d" % number for number in range(20) for _ in range(2)]
        assert not one.channel._pending


async def test_request_to_unknown_worker_raises_unknown_worker_error(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, 1) as (one,):
        with pytest.raises(UnknownWorkerError):
            await one.channel.request(new_worker_id(), b"", WAIT_SECONDS)


async def test_announcement_of_unknown_kind_is_ignored(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two):
        await (await one.channel.announce("other", b"1"))
        await (await one.channel.announce("news", b"2"))
        await until(lambda: two.announcements == [b"2"])


async def test_request_times_out_if_worker_does_not_reply(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two):
        two.may_answer.clear()
        with pytest.raises(TimeoutError):
            await one.channel.request(two.id, b"1", 0.1)
        assert not one.channel._pending
        # A late answer belongs to no request.
        two.may_answer.set()
        assert await one.channel.request(two.id, b"1", WAIT_SECONDS) == b"echo 1"


async def test_slow_reply_does_not_delay_other_replies(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two):
        two.may_answer.clear()
        slow = asyncio.create_task(one.channel.request(two.id, b"slow", WAIT_SECONDS))
        await until(lambda: two.received)
        two.answer = _reply_immediately
        assert await one.channel.request(two.id, b"1", WAIT_SECONDS) == b"at once"
        two.may_answer.set()
        assert await slow == b"echo slow"


async def _reply_immediately(_: bytes) -> bytes:
    return b"at once"


async def test_announcement_reaches_all_workers(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, 3) as made:
        await (await made[0].channel.announce("news", b"news"))
        await until(lambda: all(worker.announcements == [b"news"] for worker in made))


async def test_request_and_announcement_fail_without_nats() -> None:
    worker = Worker("_T")
    assert not worker.channel.ready
    with pytest.raises(ConnectionError):
        await worker.channel.request(new_worker_id(), b"", WAIT_SECONDS)
    with pytest.raises(ConnectionError):
        await (await worker.channel.announce("news", b""))
    assert not worker.channel._pending


async def test_request_on_closed_connection_raises_connection_error(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two):
        assert one.client is not None
        await one.client.close()
        with pytest.raises(ConnectionError):
            await one.channel.request(two.id, b"1", WAIT_SECONDS)


async def test_requests_and_announcements_work_on_new_connection(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two):
        for worker in (one, two):
            await worker.connect(shared_nats.url)
            await until(lambda worker=worker: worker.channel.ready)  # type: ignore[misc]
        assert await one.channel.request(two.id, b"1", WAIT_SECONDS) == b"echo 1"
        await (await one.channel.announce("news", b"news"))
        await until(lambda: two.announcements == [b"news"])


async def test_on_ready_is_called_for_each_new_connection(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, 1) as (one,):
        await until(lambda: one.ready_when_told == [True])
        await one.connect(shared_nats.url)
        await until(lambda: one.ready_when_told == [True, True])


def permissions(*, subscribe: str = "_T.>", publish: str = "_T.>") -> str:
    allowed = f'subscribe: ["{subscribe}"], publish: ["{publish}"]'
    return f"authorization {{ users = [{{ user: b, password: b, permissions: {{ {allowed} }} }}] }}"


def as_user(server: NatsServer) -> str:
    return server.url.replace("//", "//b:b@")


@pytest.mark.parametrize(
    ("taken", "reason"),
    [
        (permissions(subscribe="x"), "NATS allows no subscription to '_T.reply."),
        (permissions(subscribe="_T.reply.>"), "NATS allows no subscription to '_T.worker."),
        (permissions(publish="x"), "NATS delivers no messages below '_T'"),
        (permissions(publish='_T.worker.>", "_T.reply.>'), "NATS delivers no messages below '_T'"),
    ],
    ids=["all subscriptions", "some subscriptions", "publishing", "publishing announcements"],
)
async def test_channel_recovers_when_nats_allows_its_subjects(
    taken: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sanic.root.nats_bridge")
    with NatsServer(config=taken) as server:
        worker = Worker("_T")
        await worker.connect(as_user(server))
        async with held() as clock:
            await clock.forward_until(lambda: "cannot reach each other" in caplog.text, step=1)
            assert reason in caplog.text
            assert not worker.channel.ready
            with pytest.raises(ConnectionError, match="NATS does not let the workers reach each other"):
                await (await worker.channel.announce("news", b"news"))
            # It is logged once, however often it is tried.
            await clock.forward(120)
            assert caplog.text.count("cannot reach each other") == 1
            server.config = permissions()
            server.reload()
            await clock.forward_until(lambda: worker.channel.ready, step=1)
        assert "The workers of this app can reach each other again" in caplog.text
        await (await worker.channel.announce("news", b"news"))
        assert worker.announcements == [b"news"]
        await worker.channel.stop()
        await worker.disconnect()


@pytest.mark.parametrize(
    ("taken", "reason"),
    [
        (permissions(subscribe="x"), "NATS allows no subscription to '_T."),
        (permissions(subscribe='_T.worker.>", "_T.reply.>'), "NATS allows no subscription to '_T.all.>'"),
        (permissions(publish="x"), "NATS delivers no messages below '_T'"),
        (permissions(publish='_T.worker.>", "_T.reply.>'), "NATS delivers no messages below '_T'"),
    ],
    ids=["subscriptions", "one subscription", "publishing", "publishing announcements"],
)
async def test_permissions_taken_from_ready_channel_are_noticed(
    taken: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with NatsServer(config=permissions()) as server:
        worker = Worker("_T")
        await worker.connect(as_user(server))
        await until(lambda: worker.channel.ready)
        async with held() as clock:
            server.config = taken
            server.reload()
            await clock.forward_until(lambda: not worker.channel.ready, step=1)
            assert reason in caplog.text
            server.config = permissions()
            server.reload()
            await clock.forward_until(lambda: worker.channel.ready, step=1)
        await until(lambda: worker.ready_when_told == [True, True])
        await (await worker.channel.announce("news", b"news"))
        await worker.channel.stop()
        await worker.disconnect()


async def test_check_in_progress_does_not_hide_a_refusal(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, 1) as (one,), held() as clock:
        checking = asyncio.create_task(one.channel._check())
        await asyncio.sleep(0)
        one.channel._subscriptions["all"].refused()
        await checking
        assert not one.channel.ready
        await clock.forward_until(lambda: one.channel.ready, step=0.5)
        assert len(one.channel._subscriptions) == 3


async def test_stop_waits_for_announcement(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two):
        delivered = await one.channel.announce("news", b"news")
        announced = asyncio.create_task(delivered)
        await one.channel.stop()
        await announced
        await until(lambda: two.announcements == [b"news"])


async def test_stopped_channel_ignores_new_connections(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, 1) as (one,):
        await one.channel.stop()
        await one.connect(shared_nats.url)
        assert not one.channel._subscriptions
        with pytest.raises(ConnectionError, match="this worker is stopping"):
            await announced_by(one)
        one.channel.start(one.id)
        await one.connect(shared_nats.url)
        await until(lambda: one.channel.ready)


async def test_payload_over_max_payload_is_rejected() -> None:
    with NatsServer(config="max_payload: 1024") as small:
        async with workers(small.url) as (one, two):
            with pytest.raises(ValueError, match="payload must fit max_payload"):
                await one.channel.request(two.id, bytes(1025), WAIT_SECONDS)
            with pytest.raises(ValueError, match="payload must fit max_payload"):
                await (await one.channel.announce("news", bytes(1025)))
            assert await one.channel.request(two.id, b"1", WAIT_SECONDS) == b"echo 1"
            # An answer that cannot be sent is missed by one alone.
            with pytest.raises(TimeoutError):
                await one.channel.request(two.id, bytes(1024), 0.2)


async def test_stopping_worker_answers_pending_requests_only(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two), held():
        two.may_answer.clear()
        asked = asyncio.create_task(one.channel.request(two.id, b"1", WAIT_SECONDS))
        await until(lambda: two.received)
        stopping = asyncio.create_task(two.channel.stop())
        await until(lambda: list(two.channel._subscriptions) == ["reply", "all"])
        two.may_answer.set()
        await stopping
        assert await asked == b"echo 1"
        assert not two.channel.ready
        with pytest.raises(UnknownWorkerError):
            await one.channel.request(two.id, b"2", WAIT_SECONDS)


async def test_stop_cancels_request_handler_that_does_not_finish(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two), held() as clock:
        two.may_answer.clear()
        asked = asyncio.create_task(one.channel.request(two.id, b"1", 3600))
        await until(lambda: two.received)
        stopping = asyncio.create_task(two.channel.stop())
        await clock.forward_until(stopping.done)
        await until(lambda: not two.channel._tasks)
        assert not asked.done()
        await clock.forward(3600)
        with pytest.raises(TimeoutError):
            await asked


async def test_stop_times_out_pending_request_without_reply(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two), held() as clock:
        two.may_answer.clear()
        answered, silent = (
            asyncio.create_task(one.channel.request(two.id, b"%d" % number, 3600)) for number in range(2)
        )
        await until(lambda: len(two.received) == 2)
        stopping = asyncio.create_task(one.channel.stop())
        await until(lambda: list(one.channel._subscriptions) == ["reply", "all"])
        # What comes meanwhile is taken.
        assert two.client is not None
        number = min(one.channel._pending, key=lambda stamp: int(stamp.partition("-")[2]))
        await two.client.publish(f"{one.channel.prefix}.reply.{one.id}.{number}", b"yes")
        assert await answered == b"yes"
        await clock.forward_until(stopping.done)
        with pytest.raises(TimeoutError):
            await silent
        assert not one.channel._pending


@asynccontextmanager
async def clogged(client: NatsClient, server: NatsServer) -> AsyncIterator[None]:
    """Pause the server and fill nats-py's buffer of pending data."""
    server.pause()
    publishing = []
    while client.pending_data_size <= 2 * DEFAULT_PENDING_SIZE:
        publishing.append(asyncio.create_task(client.publish("a", bytes(500_000))))
        await asyncio.sleep(0)
    try:
        yield
    finally:
        server.resume()
        for task in publishing:
            task.cancel()
        await asyncio.wait(publishing)


async def test_request_times_out_and_announcement_waits_if_server_hangs(nats_server: NatsServer) -> None:
    async with workers(nats_server.url) as (one, two):
        assert one.client is not None
        announced = None
        async with clogged(one.client, nats_server):
            with pytest.raises(TimeoutError):
                await one.channel.request(two.id, b"1", 0.1)
            assert not one.channel._pending
            announced = asyncio.create_task(announced_by(one))
            await asyncio.sleep(0)
            assert not announced.done()
        await announced
        await until(lambda: two.announcements == [b"news"])


async def test_waiting_announcement_fails_when_connection_ends(nats_server: NatsServer) -> None:
    async with workers(nats_server.url, 1) as (one,):
        client = one.client
        assert client is not None
        async with clogged(client, nats_server):
            announced = asyncio.create_task(announced_by(one))
            await asyncio.sleep(0)
            one.client = None
            one.channel.closed()
            with pytest.raises(ConnectionError):
                await announced
        await client.close()


async def test_hanging_server_does_not_block_stop(nats_server: NatsServer) -> None:
    async with workers(nats_server.url, 1) as (one,):
        assert one.client is not None
        async with clogged(one.client, nats_server):
            async with asyncio.timeout(WAIT_SECONDS):
                await one.channel.stop()
            assert not one.channel.ready
