"""POSTs for sessions that don't exist, and the limits of those that wait for other workers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from sanic_nats_bridge.protocol.session_ids import new_session_id, new_worker_id, worker_of
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_cluster_questions import spying
from tests.integration.test_cluster_relay import bystander, control_prefix, workers
from tests.support.bridge import Bridge, flush, running, until
from tests.support.clock import held
from tests.support.raw import sessions

UNKNOWN = {"type": "reply", "action": "subscribe", "success": False, "code": "session.unknown"}
PADDING = [f"{'x' * 200}{number}.open" for number in range(120)]


def body(session: str) -> dict[str, Any]:
    return {"session": session, "subjects": PADDING}


def made_up() -> str:
    return new_session_id(new_worker_id())


async def is_unknown(bridge: Bridge, session: str, **headers: str) -> bool:
    status, reply = await bridge.post("/subscribe", body(session), **headers)
    return (status, {name: reply[name] for name in UNKNOWN}) == (404, UNKNOWN)


def use_up_questions(bridge: Bridge) -> None:
    """Ask about as many unknown workers as the bridge asks about at once."""
    now = asyncio.get_running_loop().time()
    known = bridge.runtime.relay._questions._known
    known._complete_at = now
    while known.may_exist(new_worker_id(), now):
        pass


async def test_made_up_sessions_reach_nats_as_few_small_questions(nats_server: NatsServer) -> None:
    keys = ["n" * 32, "o" * 32]
    async with (
        spying(nats_server.url) as spy,
        workers(nats_server.url, control_key=keys, max_relays_per_client=1000) as (home, other),
        held() as clock,
    ):
        await clock.forward(3)
        use_up_questions(other)
        await clock.forward(0.5)
        asked = [asyncio.create_task(is_unknown(other, made_up())) for _ in range(100)]
        await clock.forward_until(lambda: all(task.done() for task in asked))
        assert all(task.result() for task in asked)
        await flush(spy.client)
        ids = {message.subject.rpartition(".")[2] for message in spy.seen if ".worker." in message.subject}
        real = {sessions(bridge).worker for bridge in (home, other)}
        # Two for each of the workers that were asked about, and for each of those one that surely doesn't exist.
        assert 0 < len(ids - real) <= 2 * 20
        assert max(len(message.data) for message in spy.seen if message.subject.rpartition(".")[2] in ids - real) == 64


async def test_made_up_session_is_unknown_within_a_second_if_a_client_subscribes_to_everything(
    nats_server: NatsServer,
) -> None:
    async with (
        workers(nats_server.url, permissions=None, subscribe=[">"]) as (home, other),
        home.websocket() as browser,
    ):
        await browser.follow(">")
        async with held() as clock:
            for used_up in (False, True):
                if used_up:
                    use_up_questions(other)
                assert other.extension.client is not None
                sent = other.extension.client.stats["out_msgs"]
                asked = asyncio.create_task(is_unknown(other, made_up()))
                began = clock.now
                while not asked.done():
                    await flush(other.extension.client)
                    await flush(other.extension.client)
                    await clock.forward(0.02)
                assert asked.result()
                assert clock.now - began <= 1
                if used_up:
                    assert other.extension.client.stats["out_msgs"] == sent


async def test_session_of_another_client_and_made_up_session_are_indistinguishable(nats_server: NatsServer) -> None:
    async with (
        spying(nats_server.url),
        workers(nats_server.url) as (home, other),
        home.events(Cookie="user=ada") as ada,
    ):
        replies = [
            await other.post("/subscribe", {"session": session, "subjects": ["a.open"]}, Cookie="user=bob")
            for session in (ada.session, f"{worker_of(ada.session)}{'x' * 32}", made_up())
        ]
        assert replies == [replies[0]] * 3
        assert replies[0][1]["code"] == "session.unknown"


async def test_session_of_worker_that_has_stopped_is_unknown_without_a_question(nats_server: NatsServer) -> None:
    options: dict[str, Any] = {"servers": nats_server.url, "control_prefix": "_T.stopped", "subscribe": ["*.open"]}
    async with spying(nats_server.url) as spy, running(**options) as other:
        async with running(**options) as home, home.events() as client:
            session, worker = client.session, sessions(home).worker
            assert (await other.post("/subscribe", body(session)))[0] == 200
        await until(lambda: worker in other.runtime.relay._questions._known._ended)
        await flush(spy.client)
        asked = len(spy.requests(worker))
        assert await is_unknown(other, session)
        await flush(spy.client)
        assert len(spy.requests(worker)) == asked


async def test_body_is_sent_to_the_worker_that_holds_the_session_only(nats_server: NatsServer) -> None:
    async with (
        spying(nats_server.url) as spy,
        workers(nats_server.url) as (home, other),
        home.events() as client,
        held(),
    ):
        worker = worker_of(client.session)
        assert worker is not None
        for session, status in ((f"{worker}{'x' * 32}", 404), (client.session, 200)):
            command = {"session": session, "subjects": ["a.open"], "id": "x" * 30_000}
            assert (await other.post("/subscribe", command))[0] == status
        await flush(spy.client)
        sizes = [len(request) for request in spy.requests(worker) if request]
        assert sizes[:2] == [32, 32]
        assert sizes[2] > 20_000
        assert len(sizes) == 3


@contextlib.asynccontextmanager
async def holder_that_never_replies(url: str, bridge: Bridge) -> AsyncIterator[tuple[str, Client, list[Msg]]]:
    """Yield a session of a worker that holds it, but answers no command, and the commands."""
    worker = new_worker_id()
    commands: list[Msg] = []
    async with bystander(url) as client:

        async def answer(message: Msg) -> None:
            if len(message.data) == 32:
                await client.publish(message.reply, b"1")
            else:
                commands.append(message)

        await client.subscribe(f"{control_prefix(bridge)}.worker.{worker}", cb=answer)
        await flush(client)
        yield new_session_id(worker), client, commands


async def post(bridge: Bridge, session: str, **headers: str) -> tuple[int, str, str | None]:
    command = {"session": session, "subjects": ["a.open"]}
    async with bridge.http.post(f"{bridge.url}/subscribe", json=command, headers=headers) as response:
        return response.status, (await response.json()).get("code"), response.headers.get("Retry-After")


async def refuse(client: Client, commands: list[Msg]) -> None:
    for message in commands:
        await client.publish(message.reply, b'{"refusal":{"code":"subject.invalid","message":"x"}}')


@pytest.mark.parametrize("user", ["user=ada", ""], ids=["identity", "address"])
async def test_relays_of_one_client_are_limited(shared_nats: NatsServer, user: str) -> None:
    async with (
        workers(shared_nats.url, max_relays_per_client=3) as (_, other),
        holder_that_never_replies(shared_nats.url, other) as (session, client, commands),
    ):
        waiting = [asyncio.create_task(post(other, session, Cookie=user)) for _ in range(3)]
        await until(lambda: len(commands) == 3)
        refused = other.extension.stats().refused.get("limit.rate", 0)
        assert await post(other, session, Cookie=user) == (429, "limit.rate", "1")
        assert other.extension.stats().refused["limit.rate"] == refused + 1
        # Another client isn't affected.
        waiting.append(asyncio.create_task(post(other, session, Cookie="user=bob")))
        await until(lambda: len(commands) == 4)
        await refuse(client, commands)
        assert [(await each)[0] for each in waiting] == [400] * 4
        assert not other.runtime.relay.in_progress._by_client
        assert len(other.runtime.relay.in_progress) == 0


async def test_relays_of_one_worker_are_limited(shared_nats: NatsServer) -> None:
    async with (
        workers(shared_nats.url, max_relays=3) as (home, other),
        holder_that_never_replies(shared_nats.url, other) as (session, client, commands),
        other.events() as events,
    ):
        waiting = [asyncio.create_task(post(other, session, Cookie=f"user={number}")) for number in range(3)]
        await until(lambda: len(commands) == 3)
        assert await post(other, session, Cookie="user=3") == (503, "session.unreachable", None)
        # Sessions of the worker itself aren't affected.
        assert (await post(other, events.session))[0] == 200
        await refuse(client, commands)
        assert [(await each)[0] for each in waiting] == [400] * 3
        async with home.events() as elsewhere:
            assert (await post(other, elsewhere.session))[0] == 200


async def test_client_that_disconnects_frees_its_relay(shared_nats: NatsServer) -> None:
    async with (
        workers(shared_nats.url, max_relays_per_client=1) as (_, other),
        holder_that_never_replies(shared_nats.url, other) as (session, _client, commands),
    ):
        waiting = asyncio.create_task(post(other, session))
        await until(lambda: commands)
        waiting.cancel()
        await until(lambda: not other.runtime.relay.in_progress)
