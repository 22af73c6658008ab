"""The control subjects, if other programs of the NATS account may use them."""

import asyncio
import json
import logging
from itertools import pairwise
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from sanic_nats_bridge.log_limits import LINES
from sanic_nats_bridge.protocol.session_ids import digest, new_worker_id
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_cluster_questions import spying
from tests.integration.test_cluster_relay import address, bystander, control_prefix, workers
from tests.support.bridge import Bridge, flush, running, until
from tests.support.clock import held

KEY, OLD, OTHER = "k" * 32, "o" * 32, "x" * 32

EVERYTHING: dict[str, Any] = {
    "worker": "x",
    "identity": "ada",
    "session": None,
    "permissions": {
        "subscribe": [">"],
        "deny": [],
        "variables": {},
        "aliases": {},
        "allow_wildcards": True,
        "identity": None,
        "expires_at": None,
    },
}


async def announce(client: Client, bridge: Bridge, kind: str, payload: bytes) -> None:
    await client.publish(f"{control_prefix(bridge)}.all.{kind}.{new_worker_id()}.1-1", payload)


@pytest.mark.parametrize("key", [None, KEY], ids=["without key", "with key"])
async def test_foreign_update_is_applied_only_without_control_key(shared_nats: NatsServer, key: str | None) -> None:
    async with (
        workers(shared_nats.url, control_key=key) as (home, _),
        bystander(shared_nats.url) as stranger,
        home.websocket(additional_headers={"Cookie": "user=ada"}) as client,
    ):
        assert (await client.ask({"subjects": ["secret.>"]}))["code"] == "subject.forbidden"
        await announce(stranger, home, "permissions", json.dumps(EVERYTHING).encode())
        await flush(stranger)
        (session,) = home.extension.sessions
        if key is None:
            await until(lambda: session.permissions.explain("secret.>").allowed)
        else:
            await until(lambda: home.extension.stats().control_dropped["signature"] == 1)
            assert (await client.ask({"subjects": ["secret.>"]}))["code"] == "subject.forbidden"


@pytest.mark.parametrize("keys", [[KEY], [KEY, OLD]], ids=["one key", "two keys"])
async def test_commands_and_revocations_reach_workers_with_same_key(shared_nats: NatsServer, keys: list[str]) -> None:
    async with workers(shared_nats.url, control_key=keys) as (home, other), home.events(Cookie="user=ada") as client:
        command = {"session": client.session, "subjects": ["a.open"]}
        assert (await other.post("/subscribe", command, Cookie="user=ada"))[0] == 200
        assert (await other.extension.revoke(identity="ada")).announced
        assert (await client.frame())["code"] == 4403
        for bridge in (home, other):
            assert not any(bridge.extension.stats().control_dropped.values())


async def test_key_is_replaced_by_two_deployments_without_interruption(shared_nats: NatsServer) -> None:
    for before, after in pairwise([[OLD], [KEY, OLD], [KEY]]):
        prefix: dict[str, Any] = {
            "servers": shared_nats.url,
            "control_prefix": f"_T.{new_worker_id()}",
            "subscribe": ["a"],
        }
        async with (
            running(control_key=before, **prefix) as one,
            running(control_key=after, **prefix) as two,
            one.events() as first,
            two.events() as second,
        ):
            for client, bridge in ((first, two), (second, one)):
                assert (await bridge.post("/subscribe", {"session": client.session, "subjects": ["a"]}))[0] == 200
                assert (await bridge.extension.revoke(session=client.session)).announced
                assert (await client.frame())["code"] == 4403


@pytest.mark.parametrize("theirs", [[OTHER], None], ids=["other key", "no key"])
async def test_workers_with_different_keys_ignore_and_notice_each_other(
    shared_nats: NatsServer, theirs: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "servers": shared_nats.url,
        "control_prefix": f"_T.{new_worker_id()}",
        "subscribe": ["a"],
    }
    options |= {"confirm_timeout": 0.2, "relay_timeout": 0.2}
    async with (
        running(control_key=[KEY], **options) as one,
        running(control_key=theirs, **options) as two,
        one.events() as client,
    ):
        await until(lambda: caplog.text.count("has another 'control_key', or only one of the two has one") == 2)
        command = {"session": client.session, "subjects": ["a"]}
        assert (await two.post("/subscribe", command))[0] in (404, 503)
        await two.extension.revoke(session=client.session)
        await until(lambda: one.extension.stats().control_dropped["signature"] > 0)
        assert (await one.post("/subscribe", command))[0] == 200


async def test_recorded_messages_are_executed_once(shared_nats: NatsServer) -> None:
    async with (
        spying(shared_nats.url) as spy,
        workers(shared_nats.url, control_key=KEY) as (home, other),
        home.events(Cookie="user=ada") as client,
    ):
        command = {"session": client.session, "subjects": ["a.open"]}
        assert (await other.post("/subscribe", command, Cookie="user=ada"))[0] == 200
        assert (await other.post("/unsubscribe", command, Cookie="user=ada"))[0] == 200
        commands = [
            message for message in spy.seen if message.subject == address(home) and b'"subjects"' in message.data
        ]
        assert len(commands) == 2
        for message in commands:
            await spy.client.publish(message.subject, message.data, message.reply)
            await spy.client.publish(address(other), message.data, message.reply)
        await flush(spy.client)
        await until(lambda: home.extension.stats().control_dropped["replay"] == 2)
        await until(lambda: other.extension.stats().control_dropped["signature"] == 2)
        (session,) = home.extension.sessions
        assert session.subscriptions == ()


async def test_foreign_reply_is_not_taken_for_that_of_the_worker(shared_nats: NatsServer) -> None:
    async with bystander(shared_nats.url) as stranger, workers(shared_nats.url, control_key=KEY) as (home, other):

        async def answer(message: Msg) -> None:
            await stranger.publish(message.reply, b"0")

        await stranger.subscribe(f"{control_prefix(home)}.worker.*", cb=answer)
        await flush(stranger)
        async with home.events() as client:
            command = {"session": client.session, "subjects": ["a.open"]}
            assert (await other.post("/subscribe", command))[0] == 200
        await until(lambda: other.extension.stats().control_dropped["signature"] > 0)


async def test_identity_and_key_of_session_are_all_that_a_question_shows(shared_nats: NatsServer) -> None:
    async with (
        spying(shared_nats.url) as spy,
        workers(shared_nats.url, control_key=[KEY, OLD]) as (home, other),
        home.events() as client,
    ):
        async with held():  # so that the question is not repeated
            assert (await other.post("/subscribe", {"session": client.session, "subjects": ["a.open"]}))[0] == 200
        await flush(spy.client)
        question, _ = (
            message.data for message in spy.seen if message.subject == address(home) and len(message.data) > 32
        )
        assert len(question) == 64
        assert question[:32].hex() == digest(client.session)
        assert not any(KEY.encode() in message.data for message in spy.seen)


GARBAGE = [b"", b"{", b"\xff" * 100, json.dumps(EVERYTHING | {"identity": 5}).encode()]


@pytest.mark.parametrize("key", [None, KEY], ids=["without key", "with key"])
async def test_flood_on_control_subjects_writes_few_log_lines(
    shared_nats: NatsServer, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sanic.root.nats_bridge")
    async with (
        workers(shared_nats.url, control_key=key) as (home, other),
        bystander(shared_nats.url) as stranger,
        home.events(Cookie="user=ada") as client,
    ):
        before = len(caplog.records)
        for number in range(4000):
            payload = GARBAGE[number % len(GARBAGE)]
            for kind in ("permissions", "settings", "check", "end"):
                await announce(stranger, home, kind, payload)
            reply = f"{control_prefix(home)}.reply.{new_worker_id()}.1-{number}"
            await stranger.publish(address(home), payload, reply)
            await stranger.publish(address(home), payload, "elsewhere")
        await flush(stranger)
        command = {"session": client.session, "subjects": ["a.open"]}
        if key is not None:
            # What isn't signed costs no place of a request.
            assert (await other.post("/subscribe", command, Cookie="user=ada"))[0] == 200
            await until(lambda: home.extension.stats().control_dropped["signature"] >= 4 * 4000)
        await until(lambda: len(caplog.records) > before)
        assert len(caplog.records) - before <= 4 * LINES


async def test_login_that_nats_does_not_require_is_logged_once(
    shared_nats: NatsServer, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(servers=nats_server.url, control_prefix="_T.open", subscribe=["a"]) as bridge:
        (line,) = [record for record in caplog.records if "requires no login" in record.getMessage()]
        assert "'_T.open.>'" in line.getMessage()
        assert "control_key" in line.getMessage()
        nats_server.stop()
        await until(lambda: bridge.extension.client is None)
        nats_server.start()
        await until(lambda: bridge.runtime.control.ready)
        assert caplog.text.count("requires no login") == 1
        caplog.clear()
        async with running(servers=shared_nats.url, control_key=KEY, subscribe=["a"]):
            pass
        with NatsServer(config="authorization { user: b, password: b }") as closed:
            async with running(servers=closed.url.replace("//", "//b:b@"), subscribe=["a"]):
                pass
        assert "requires no login" not in caplog.text


async def test_requests_of_other_workers_in_progress_are_limited(shared_nats: NatsServer) -> None:
    async with (
        workers(shared_nats.url, max_relays=2, confirm_timeout=0.2, relay_timeout=0.2) as (home, _),
        bystander(shared_nats.url) as stranger,
        home.events() as client,
    ):
        (session,) = home.extension.sessions
        request = {"session": digest(client.session), "identity": None, "command": {"subjects": ["a.open"]}}
        replies = f"{control_prefix(home)}.reply.{new_worker_id()}"
        received = await stranger.subscribe(f"{replies}.*")
        async with session._commands.lock:
            for number in range(5):
                await stranger.publish(address(home), json.dumps(request).encode(), f"{replies}.1-{number}")
            await flush(stranger)
            await until(lambda: home.extension.stats().control_dropped["busy"] == 3)
            assert home.runtime.control._requests == 2
        for _ in range(2):
            await received.next_msg(10)
        await until(lambda: home.runtime.control._requests == 0)
        await asyncio.sleep(0)
        assert received.pending_msgs == 0
