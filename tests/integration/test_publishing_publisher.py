"""Publishing and requests on the connection of a worker, against a real nats-server."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from sanic_nats_bridge.errors import (
    NatsRefused,
    NatsUnavailable,
    NoResponders,
    PublishUnknown,
    PublishUnstored,
    RequestFailed,
    RequestTimedOut,
)
from sanic_nats_bridge.nats.supervisor import ConnectionSupervisor
from sanic_nats_bridge.publishing.publisher import Publisher
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_supervisor import Listener
from tests.support.bridge import UNHURRIED, WAIT_SECONDS, flush, until
from tests.support.clock import held

ANSWERS = "_NATSBRIDGE.app.answer.w"


@pytest.fixture(scope="module")
def jetstream() -> Iterator[NatsServer]:
    with NatsServer(jetstream=True) as server:
        yield server


@pytest.fixture
def own_jetstream() -> Iterator[NatsServer]:
    with NatsServer(jetstream=True) as server:
        yield server


class Harness:
    """A publisher on a supervised connection, and a client for streams and services."""

    def __init__(self, server: NatsServer, supervisor: ConnectionSupervisor, listener: Listener) -> None:
        self.server = server
        self.supervisor = supervisor
        self.listener = listener
        self.publisher = Publisher(supervisor)
        self.client = Client()

    async def serve(self, subject: str, answer: Callable[[Msg], Awaitable[Any]]) -> None:
        await self.client.subscribe(subject, cb=answer)
        await flush(self.client)

    async def add_stream(self, *subjects: str, **config: Any) -> None:
        await self.client.jetstream().add_stream(name="S", subjects=list(subjects), **config)

    async def stored(self) -> int:
        return int((await self.client.jetstream().stream_info("S")).state.messages)

    def subscriptions(self) -> int:
        """Return the number of subscriptions to answers that NATS has."""
        connections = self.server.monitor("/connz?subs=1&limit=4096")["connections"]
        patterns = [pattern for connection in connections for pattern in connection.get("subscriptions_list", ())]
        return sum(pattern.startswith(ANSWERS) for pattern in patterns)

    async def check_freed(self) -> None:
        """Wait until nothing is left of the messages whose answers were awaited."""
        await until(lambda: self.publisher.in_progress == 0)
        connection = self.supervisor.connection
        assert connection is None or not connection.controls
        await until(lambda: self.subscriptions() == 0)


@contextlib.asynccontextmanager
async def publishing(server: NatsServer, login: str | None = None, **settings: Any) -> AsyncIterator[Harness]:
    """Connect a publisher, and a client with a user name and the password "x" if there is a login."""
    listener = Listener()
    supervisor = ConnectionSupervisor(
        Settings.resolve({**UNHURRIED, "servers": server.url} | settings, {}),
        on_established=lambda: harness.publisher.established(),
        on_closed=lambda: harness.publisher.closed(),
        on_connected=lambda: None,
        on_denied=lambda subject: denied(subject),
    )

    def denied(subject: str) -> bool:
        harness.publisher.denied(subject)
        return False

    harness = Harness(server, supervisor, listener)
    harness.publisher.start(ANSWERS)
    supervisor.start(listener)
    try:
        await harness.publisher.connected(WAIT_SECONDS)
        user: dict[str, Any] = {} if login is None else {"user": login, "password": "x"}
        await harness.client.connect(server.url, allow_reconnect=False, **user)
        yield harness
        if harness.client.is_connected and server.monitor("/varz")["jetstream"]:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await harness.client.jetstream().delete_stream("S")
    finally:
        harness.publisher.stop()
        await supervisor.stop()
        await harness.client.close()


async def echo(message: Msg) -> None:
    await message.respond(message.data)


# Publishing


async def test_message_arrives_with_its_headers(shared_nats: NatsServer) -> None:
    got: list[tuple[str, bytes, Any]] = []

    async def note(message: Msg) -> None:
        got.append((message.subject, message.data, message.headers))

    async with publishing(shared_nats) as harness:
        await harness.serve("notes.>", note)
        harness.publisher.send("notes.a", b"1")
        harness.publisher.send("notes.b", b"\r\nPUB notes.x 0\r\n\r\n", b"NATS/1.0\r\nTrace: x\r\n\r\n")
        harness.publisher.send("notes.c", b"", b"NATS/1.0\r\nTrace: x\r\n\r\n")
        await until(lambda: len(got) == 3)
    assert got == [
        ("notes.a", b"1", None),
        ("notes.b", b"\r\nPUB notes.x 0\r\n\r\n", {"Trace": "x"}),
        ("notes.c", b"", {"Trace": "x"}),
    ]


async def test_acknowledged_message_is_stored_once(jetstream: NatsServer) -> None:
    async with publishing(jetstream) as harness:
        await harness.add_stream("s.>")
        block = b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n"
        first = await harness.publisher.store("s.a", b"1", block)
        second = await harness.publisher.store("s.a", b"1", block)
        assert (first.stream, first.sequence, first.duplicate) == ("S", 1, False)
        assert (second.sequence, second.duplicate) == (1, True)
        assert (await harness.publisher.store("s.a", b"1")).sequence == 2
        assert await harness.stored() == 2
        await harness.check_freed()


async def test_many_acknowledgements_at_once_are_those_of_their_messages(jetstream: NatsServer) -> None:
    async with publishing(jetstream) as harness:
        await harness.add_stream("s.>", storage="memory")
        futures = [harness.publisher.store(f"s.{number % 10}", b"%d" % number) for number in range(1_000)]
        stored = await asyncio.gather(*futures)
        assert [each.sequence for each in stored] == list(range(1, 1_001))
        await harness.check_freed()


async def test_publish_without_stream_and_subscriber_is_unstored(jetstream: NatsServer) -> None:
    async with publishing(jetstream) as harness:
        with pytest.raises(PublishUnstored, match="no stream and no subscriber"):
            await harness.publisher.store("nobody", b"")
        await harness.check_freed()


async def test_publish_to_a_subscriber_without_stream_is_unknown_after_its_time(jetstream: NatsServer) -> None:
    got: list[Msg] = []

    async def note(message: Msg) -> None:
        got.append(message)

    async with publishing(jetstream) as harness:
        await harness.serve("notes", note)
        async with held() as clock:
            future = harness.publisher.store("notes", b"1")
            await until(lambda: got)
            await clock.forward(3.9)
            assert not future.done()
            await clock.forward(0.1)
        with pytest.raises(PublishUnknown, match="within 4 s"):
            await future
        await harness.check_freed()
        # The late answer disturbs nothing.
        await got[0].respond(b'{"stream":"S","seq":1}')
        with pytest.raises(PublishUnstored):
            await harness.publisher.store("nobody", b"")


@pytest.mark.parametrize(
    ("config", "payload", "block", "description"),
    [
        ({"max_msgs": 1, "discard": "new"}, b"", b"", "maximum messages exceeded"),
        ({"max_bytes": 200, "discard": "new"}, b"x" * 300, b"", "maximum bytes exceeded"),
        ({"max_msg_size": 10}, b"x" * 11, b"", "message size exceeds maximum allowed"),
        ({}, b"", b"NATS/1.0\r\nNats-Expected-Last-Sequence: 9\r\n\r\n", "wrong last sequence: 1"),
    ],
)
async def test_refusal_of_jetstream_has_its_description(
    jetstream: NatsServer, config: dict[str, Any], payload: bytes, block: bytes, description: str
) -> None:
    async with publishing(jetstream) as harness:
        await harness.add_stream("s.>", **config)
        await harness.publisher.store("s.a", b"1")
        with pytest.raises(PublishUnstored, match="JetStream has refused the message") as raised:
            await harness.publisher.store("s.a", payload, block)
        assert raised.value.description == description
        assert await harness.stored() == 1


async def test_answer_of_a_subscriber_leaves_the_outcome_unknown(jetstream: NatsServer) -> None:
    async with publishing(jetstream) as harness:
        await harness.serve("svc", echo)
        with pytest.raises(PublishUnknown, match="a subscriber that is not a stream"):
            await harness.publisher.store("svc", b"1")


# Requests


async def test_thousand_requests_at_once_get_their_own_answers(shared_nats: NatsServer) -> None:
    async with publishing(shared_nats) as harness:
        await harness.serve("svc", echo)
        futures = [harness.publisher.request("svc", b"%d" % number, seconds=WAIT_SECONDS) for number in range(1_000)]
        answers = await asyncio.gather(*futures)
        assert [int(answer.data) for answer in answers] == list(range(1_000))
        await harness.check_freed()


async def test_answers_may_come_in_any_order(shared_nats: NatsServer) -> None:
    asked: list[Msg] = []

    async def collect(message: Msg) -> None:
        asked.append(message)

    async with publishing(shared_nats) as harness:
        await harness.serve("svc", collect)
        futures = [harness.publisher.request("svc", b"%d" % n, seconds=WAIT_SECONDS) for n in range(50)]
        await until(lambda: len(asked) == 50)
        for message in reversed(asked):
            await message.respond(b"re " + message.data)
        assert [answer.data for answer in await asyncio.gather(*futures)] == [b"re %d" % n for n in range(50)]


async def test_only_first_of_many_answers_is_received(shared_nats: NatsServer) -> None:
    answered: Counter[int] = Counter()

    def responder(number: int) -> Callable[[Msg], Awaitable[None]]:
        async def answer(message: Msg) -> None:
            for _ in range(10):
                await message.respond(b"x" * 1000)
            answered[number] += 1

        return answer

    async with publishing(shared_nats, name="publisher-of-one-answer") as harness:
        for number in range(20):
            await harness.serve("svc", responder(number))
        assert (await harness.publisher.request("svc", b"", seconds=WAIT_SECONDS)).data == b"x" * 1000
        await until(lambda: len(answered) == 20)
        await flush(harness.client)
        connections = shared_nats.monitor("/connz?limit=4096")["connections"]
        (bridge,) = [each for each in connections if each.get("name") == "publisher-of-one-answer"]
        assert (bridge["in_msgs"], bridge["out_msgs"], bridge["out_bytes"]) == (1, 1, 1000)
        await harness.check_freed()


async def test_request_without_subscriber_has_no_responders(shared_nats: NatsServer) -> None:
    async with publishing(shared_nats) as harness:
        with pytest.raises(NoResponders):
            await harness.publisher.request("nobody", b"", seconds=WAIT_SECONDS)
        await harness.check_freed()


async def test_error_of_a_service_has_its_code(shared_nats: NatsServer) -> None:
    async def fail(message: Msg) -> None:
        headers = {"Nats-Service-Error": "sold out", "Nats-Service-Error-Code": "410"}
        await harness.client.publish(message.reply, b"{}", headers=headers)

    async with publishing(shared_nats) as harness:
        await harness.serve("svc", fail)
        with pytest.raises(RequestFailed, match="sold out") as raised:
            await harness.publisher.request("svc", b"", seconds=WAIT_SECONDS)
        assert raised.value.service_code == "410"


async def test_slow_responder_is_too_late(shared_nats: NatsServer) -> None:
    asked: list[Msg] = []

    async def collect(message: Msg) -> None:
        asked.append(message)

    async with publishing(shared_nats) as harness:
        await harness.serve("svc", collect)
        async with held() as clock:
            slow, quick = (harness.publisher.request("svc", b"", seconds=seconds) for seconds in (2, 3))
            await until(lambda: len(asked) == 2)
            await clock.forward(2)
            with pytest.raises(RequestTimedOut, match="within 2 s"):
                await slow
            for message in asked:
                await message.respond(b"late")
            await until(quick.done)
        assert (await quick).data == b"late"
        await harness.check_freed()


async def test_cancelled_request_frees_its_place_at_once(shared_nats: NatsServer) -> None:
    async def ignore(_: Msg) -> None: ...

    async with publishing(shared_nats) as harness:
        await harness.serve("svc", ignore)
        for _ in range(3):
            futures = [harness.publisher.request("svc", b"", seconds=WAIT_SECONDS) for _ in range(16)]
            tasks = [asyncio.ensure_future(_awaited(future)) for future in futures]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await harness.check_freed()


async def _awaited(future: asyncio.Future[Any]) -> Any:
    return await future


# The connection


async def test_killed_server_ends_publishes_and_requests(own_jetstream: NatsServer) -> None:
    got: list[Msg] = []

    async def note(message: Msg) -> None:
        got.append(message)

    async with publishing(own_jetstream) as harness:
        await harness.serve("silent", note)
        stored = harness.publisher.store("silent", b"")
        answered = harness.publisher.request("silent", b"", seconds=WAIT_SECONDS)
        await until(lambda: len(got) == 2)
        own_jetstream.kill()
        with pytest.raises(PublishUnknown, match="because NATS is disconnected"):
            await stored
        with pytest.raises(NatsUnavailable, match="No answer, because NATS is disconnected"):
            await answered
        for call in (harness.publisher.send, harness.publisher.store):
            with pytest.raises(NatsUnavailable, match="NATS is disconnected"):
                call("a", b"")
        with pytest.raises(NatsUnavailable, match="NATS is disconnected"):
            harness.publisher.request("a", b"", seconds=1)
        await until(lambda: harness.publisher.in_progress == 0)
        own_jetstream.start()
        await harness.publisher.connected(WAIT_SECONDS)
        # Nothing was kept for the new connection, and it works.
        with pytest.raises(NoResponders):
            await harness.publisher.request("silent", b"", seconds=WAIT_SECONDS)


async def fill(publisher: Publisher) -> int:
    """Publish until NATS accepts no data; return the number of messages."""
    sent = 0
    with contextlib.suppress(NatsUnavailable):
        while True:
            publisher.send("a", b"x" * 60_000)
            sent += 1
            await asyncio.sleep(0)
    return sent


async def test_paused_server_is_not_sent_more_than_it_takes(own_jetstream: NatsServer) -> None:
    async with publishing(own_jetstream, ping_interval=WAIT_SECONDS) as harness:
        own_jetstream.pause()
        try:
            sent = await fill(harness.publisher)
            connection = harness.supervisor.connection
            assert connection is not None
            assert 4 * 1024 * 1024 < connection.unsent_bytes < 5 * 1024 * 1024
            with pytest.raises(NatsUnavailable, match="NATS accepts no data"):
                harness.publisher.store("a", b"")
            waiting = asyncio.create_task(harness.publisher.room())
            await asyncio.sleep(0)
            assert not waiting.done()
        finally:
            own_jetstream.resume()
        await waiting
        harness.publisher.send("a", b"")
        assert harness.supervisor.connection is connection
        await until(lambda: own_jetstream.monitor("/varz")["in_msgs"] > sent)
        assert connection.unsent_bytes == 0


async def test_paused_server_leaves_the_outcome_unknown(own_jetstream: NatsServer) -> None:
    async with publishing(own_jetstream) as harness:
        await harness.add_stream("s.>")
        own_jetstream.pause()
        try:
            async with held() as clock:
                future = harness.publisher.store("s.a", b"", b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n")
                await clock.forward(4)
            with pytest.raises(PublishUnknown, match="may have been stored"):
                await future
        finally:
            own_jetstream.resume()
        again = await harness.publisher.store("s.a", b"", b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n")
        assert (again.sequence, again.duplicate) == (1, True)
        await harness.check_freed()


async def test_questions_of_an_old_connection_leave_the_new_one_alone(own_jetstream: NatsServer) -> None:
    async def ignore(_: Msg) -> None: ...

    async with publishing(own_jetstream) as harness:
        await harness.serve("silent", ignore)
        old = [harness.publisher.request("silent", b"", seconds=WAIT_SECONDS) for _ in range(10)]
        own_jetstream.restart()
        await asyncio.gather(*old, return_exceptions=True)
        await harness.publisher.connected(WAIT_SECONDS)
        harness.client = await nats.connect(own_jetstream.url)
        await harness.serve("svc", echo)
        numbers = range(20)
        new = [harness.publisher.request("svc", b"%d" % number, seconds=WAIT_SECONDS) for number in numbers]
        for future in old:
            future.cancel()
        assert [int((await future).data) for future in new] == list(numbers)
        await harness.check_freed()


async def test_stop_ends_requests_in_flight(shared_nats: NatsServer) -> None:
    async def ignore(_: Msg) -> None: ...

    async with publishing(shared_nats) as harness:
        await harness.serve("silent", ignore)
        futures = [harness.publisher.request("silent", b"", seconds=WAIT_SECONDS) for _ in range(600)]
        harness.publisher.stop()
        for future in futures:
            with pytest.raises(NatsUnavailable, match="this worker is stopping"):
                await future


# Permissions and limits of NATS


def restricted(publish: list[str], subscribe: list[str]) -> str:
    allowed = f"{{publish: {json.dumps(publish)}, subscribe: {json.dumps(subscribe)}}}"
    users = f"{{user: bridge, password: x, permissions: {allowed}}}, {{user: other, password: x}}"
    return f"authorization {{ users: [{users}], timeout: 60 }}"


@contextlib.asynccontextmanager
async def restricted_publishing(
    *, publish: list[str], subscribe: list[str], config: str = ""
) -> AsyncIterator[Harness]:
    with NatsServer(config=restricted(publish, subscribe) + config) as server:
        async with publishing(server, "other", user="bridge", password="x") as harness:
            yield harness


async def test_denied_publish_is_an_error_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with restricted_publishing(publish=["svc"], subscribe=[f"{ANSWERS}.*"]) as harness:
        await harness.serve("svc", echo)
        await harness.serve("denied", echo)
        for ask in (harness.publisher.store, lambda *parts: harness.publisher.request(*parts, seconds=WAIT_SECONDS)):
            with pytest.raises(NatsRefused, match="does not let the bridge publish to this subject"):
                await ask("denied", b"")
        harness.publisher.send("denied", b"")
        harness.publisher.send("denied.other", b"")
        assert (await harness.publisher.request("svc", b"1", seconds=WAIT_SECONDS)).data == b"1"
        await harness.check_freed()
    lines = [record.getMessage() for record in caplog.records if "Publish" in record.getMessage()]
    assert lines == [
        "The NATS server reported an error: 'Permissions Violation for Publish to \"denied\"'",
        "The NATS server reported an error: 'Permissions Violation for Publish to \"denied.other\"'",
    ]


async def test_denied_answers_are_an_error_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with restricted_publishing(publish=["svc"], subscribe=["none"]) as harness:
        await harness.serve("svc", echo)
        for _ in range(2):
            with pytest.raises(NatsRefused, match="does not let the bridge receive an answer"):
                await harness.publisher.request("svc", b"", seconds=WAIT_SECONDS)
        await harness.check_freed()
    lines = [record.getMessage() for record in caplog.records if "no answers" in record.getMessage()]
    assert len(lines) == 1
    assert f"'{ANSWERS}.*'" in lines[0]


async def test_responder_with_allowed_responses_can_answer(caplog: pytest.LogCaptureFixture) -> None:
    config = (
        "authorization { timeout: 60, users: [ {user: bridge, password: x}, {user: service, password: x, permissions: "
        '{subscribe: "svc", publish: {deny: ">"}, allow_responses: true}} ] }'
    )
    with NatsServer(config=config) as server:
        async with publishing(server, "service", user="bridge", password="x") as harness:
            await harness.serve("svc", echo)
            assert (await harness.publisher.request("svc", b"1", seconds=WAIT_SECONDS)).data == b"1"


async def test_headers_count_in_max_payload() -> None:
    with NatsServer(config="max_payload: 1024") as server:
        async with publishing(server) as harness:
            await harness.serve("svc", echo)
            connection = harness.supervisor.connection
            block = b"NATS/1.0\r\nTrace: x\r\n\r\n"
            largest = b"x" * (1024 - len(block))
            assert (await harness.publisher.request("svc", largest, block, seconds=WAIT_SECONDS)).data == largest
            with pytest.raises(Exception, match="at most 1024 bytes"):
                harness.publisher.send("svc", largest + b"x", block)
            assert (await harness.publisher.request("svc", b"1", seconds=WAIT_SECONDS)).data == b"1"
            assert harness.supervisor.connection is connection


async def test_line_too_long_for_the_server_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(config="max_control_line: 256") as server:
        async with publishing(server) as harness:
            harness.publisher.send("x" * 100, b"")
            harness.publisher.send("x" * 255, b"")
            await until(lambda: harness.listener.changes == ["up", "down", "up"])
            with pytest.raises(NatsRefused, match="no subject of this length"):
                harness.publisher.send("y" * 255, b"")
            with pytest.raises(NatsRefused, match="no subject of this length"):
                harness.publisher.store("y" * 210, b"")
            harness.publisher.send("x" * 100, b"")
            await flush(harness.client)
            assert harness.listener.changes == ["up", "down", "up"]
    assert any("refuses messages whose subjects have about 255 bytes" in line.getMessage() for line in caplog.records)
