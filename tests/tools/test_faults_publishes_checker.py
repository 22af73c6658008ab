"""The check of clients that publish, with made-up faults, and the clients themselves against a made-up bridge."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.bridge import until
from tools.faults.publishes import checker, fault, senders
from tools.faults.publishes.authors import (
    HEADER,
    STREAM,
    SUBJECTS,
    identity_of,
    is_forbidden,
    permissions,
    real_subject,
)
from tools.faults.publishes.checker import Verdict, check
from tools.faults.publishes.holding import HoldingProxy
from tools.faults.publishes.records import ACKNOWLEDGED, PENDING, UNKNOWN, Publish, Stored
from tools.faults.publishes.senders import BlindSender, PostSender

IDENTITY = identity_of(1)
HEADERS = {HEADER: quote(IDENTITY, safe=""), "Nats-Msg-Id": "x"}


def sent(number: int, **changes: Any) -> Publish:
    """Return a publish that was acknowledged at the sequence of its number."""
    data = {"sender": "a", "number": number, "pad": ""}
    publish = Publish("a", number, IDENTITY, "said.room.1", data, waited=True, attempts=1)
    publish.acknowledge({"stream": STREAM, "sequence": number, "duplicate": False})
    return replace(publish, **changes)


def refused(number: int, code: str, **changes: Any) -> Publish:
    return sent(number, outcome=code, stream=None, sequence=None, duplicate=None, **changes)


def copy(publish: Publish, sequence: int | None = None, **changes: Any) -> Stored:
    return Stored(sequence or publish.number, publish.subject, publish.data, HEADERS)._replace(**changes)


def found(publishes: list[Publish], stored: list[Stored], refusals: set[str] | None = None) -> Verdict:
    return check(publishes, stored, STREAM, refusals or set())


def test_publishes_that_are_stored_once_break_nothing() -> None:
    repeated = sent(2, attempts=3, duplicate=True)
    unknown = refused(3, UNKNOWN, attempts=9)
    stored = refused(4, UNKNOWN)
    unstored = refused(5, "publish.unstored")
    secret = refused(6, "publish.forbidden", forbidden=True)
    publishes = [sent(1), repeated, unknown, stored, unstored, secret]
    verdict = found(publishes, [copy(sent(1)), copy(repeated), copy(stored)], {UNKNOWN, "publish.unstored"})
    assert not verdict.violations, verdict.notes
    assert (verdict.publishes, verdict.acknowledged, verdict.stored_once) == (6, 2, 2)
    assert (verdict.unknown, dict(verdict.refused), verdict.forbidden) == (2, {"publish.unstored": 1}, 1)
    assert (verdict.repeated, verdict.attempts, verdict.dropped) == (2, 16, 1)


SECRET = {"subject": "said.secret.plan", "forbidden": True}
FAULTS: Mapping[str, tuple[Publish, list[Stored], set[str]]] = {
    "an acknowledged one isn't stored": (sent(1), [], {"lost"}),
    "an acknowledged one is stored twice": (sent(1), [copy(sent(1)), copy(sent(1), 2)], {"doubled"}),
    "an unknown one is stored twice": (refused(1, UNKNOWN), [copy(sent(1)), copy(sent(1), 2)], {"doubled", "refused"}),
    "a refused one is stored": (refused(1, "publish.unstored"), [copy(sent(1))], {"stored", "refused"}),
    "one is refused for no reason": (refused(1, "limit.publish"), [], {"refused"}),
    "one is never answered": (refused(1, PENDING), [copy(sent(1))], {"unsettled"}),
    "no client has sent one": (sent(1), [copy(sent(1)), copy(sent(2))], {"stranger"}),
    "one of another program": (sent(1), [copy(sent(1)), Stored(2, "said.room.1", "?", {})], {"stranger"}),
    "one is on another subject": (sent(1), [copy(sent(1), subject="said.room.2")], {"altered"}),
    "one has other data": (sent(1), [copy(sent(1), data={**sent(1).data, "pad": "x"})], {"altered"}),
    "one has no author": (sent(1), [copy(sent(1), headers={})], {"author"}),
    "one has another author": (sent(1), [copy(sent(1), headers={HEADER: "someone"})], {"author"}),
    "one has an author that isn't encoded": (sent(1), [copy(sent(1), headers={HEADER: IDENTITY})], {"author"}),
    "the acknowledgement names another place": (sent(1), [copy(sent(1), 2)], {"place"}),
    "the acknowledgement names another stream": (sent(1, stream="OTHER"), [copy(sent(1))], {"place"}),
    "one that was sent once is a duplicate": (sent(1, duplicate=True), [copy(sent(1))], {"duplicate"}),
    "the acknowledgement has no 'duplicate'": (sent(1, duplicate=None), [copy(sent(1))], {"duplicate"}),
    "a forbidden one is acknowledged": (sent(1, **SECRET), [copy(sent(1, **SECRET))], {"allowed", "forbidden"}),
    "a forbidden one has another code": (refused(1, "publish.unstored", **SECRET), [], {"allowed"}),
    "a forbidden one is stored": (
        refused(1, "publish.forbidden", **SECRET), [copy(sent(1, **SECRET))], {"stored", "forbidden"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str) -> None:
    publish, stored, kinds = FAULTS[name]
    verdict = found([publish], stored)
    assert set(verdict.violations) == kinds, verdict.notes
    assert fault.to_verdict(verdict).broken == len(kinds)


def test_order_is_that_of_clients_that_wait() -> None:
    late = [sent(1, sequence=3), sent(2), sent(3, sequence=4), sent(4, sequence=1)]
    stored = [copy(each, each.sequence) for each in late]
    assert found(late, stored).violations == {"order": 2}
    for publish in late:
        publish.waited = False
    assert not found(late, stored).violations


def test_each_further_copy_counts() -> None:
    assert found([sent(1)], [copy(sent(1), place) for place in (1, 2, 3)]).violations == {"doubled": 2}


def test_allowed_refusal_breaks_nothing() -> None:
    assert not found([refused(1, "publish.unstored")], [], {"publish.unstored"}).violations


def test_every_kind_of_violation_has_a_column() -> None:
    source = Path(checker.__file__).read_text()
    kinds = set(re.findall(r'verdict\.add\(\s*"([a-z]+)"', source))
    assert kinds == set().union(*(each for _, _, each in FAULTS.values())) | {"order"}
    verdict = fault.to_verdict(Verdict(stored_once=3, violations=Counter(dict.fromkeys(kinds, 1))))
    assert (verdict.delivered, verdict.broken) == (3, len(kinds))


def test_authors_may_publish_all_but_secrets() -> None:
    granted = permissions(IDENTITY)
    assert granted["identity"] == IDENTITY
    assert granted["aliases"] == {"mine.": "said.u1."}
    assert granted["deny"] == ["said.secret.>"]
    assert [each for each in SUBJECTS if is_forbidden(each)] == ["said.secret.plan"]
    assert real_subject(IDENTITY, "mine.note") == "said.u1.note"
    assert real_subject(IDENTITY, "said.room.1") == "said.room.1"


class Bridge:
    """A bridge whose replies are made up. It sends none in place of ``None``."""

    def __init__(self, *replies: Mapping[str, Any] | None) -> None:
        self.replies = list(replies)
        self.commands: list[Mapping[str, Any]] = []
        self.authors: set[str] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.authors.add(request.query["author"])
        self.commands.append(await request.json())
        reply = self.replies.pop(0) if self.replies else code("publish.forbidden")
        if reply is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return web.json_response(reply)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "_MAX_RETRY_SECONDS", 0.01)


STORED = {"success": True, "stream": STREAM, "sequence": 7, "duplicate": True}


def code(text: str, **fields: object) -> Mapping[str, Any]:
    return {"success": False, "code": text, **fields}


async def publish(bridge: Bridge, sender_class: type[PostSender]) -> Publish:
    """Return the first publish of a client, with what becomes of it."""
    app = web.Application()
    app.router.add_post("/nats/publish", bridge.answer)
    async with TestServer(app) as server:
        address = str(server.make_url("")).rstrip("/")
        sender = sender_class("a", IDENTITY, address, waits=True, interval=0.01)
        sender.start()
        await until(lambda: 1 in sender.publishes and sender.publishes[1].outcome != PENDING)
        sender.stop()
        await sender.close()
    assert bridge.authors == {IDENTITY}
    return sender.publishes[1]


async def test_program_repeats_with_its_id_until_it_has_an_answer() -> None:
    again = [code("limit.publish", retry=1), code("nats.unavailable"), code(UNKNOWN), code("internal")]
    bridge = Bridge(None, *again, code("publish.unstored"), STORED)
    told = await publish(bridge, PostSender)
    assert (told.outcome, told.sequence, told.duplicate, told.attempts) == (ACKNOWLEDGED, 7, True, 7)
    assert len({each["msg_id"] for each in bridge.commands[:7]}) == 1
    assert [each["data"]["number"] for each in bridge.commands[:7]] == [1] * 7


async def test_blind_program_repeats_without_an_id() -> None:
    bridge = Bridge(None, STORED)
    told = await publish(bridge, BlindSender)
    assert (told.outcome, told.attempts) == (ACKNOWLEDGED, 2)
    assert not any("msg_id" in each for each in bridge.commands)


@pytest.mark.parametrize(
    ("replies", "outcome"),
    [
        ([code("publish.unstored")], "publish.unstored"),
        ([code("nats.unavailable"), code("publish.unstored")], "publish.unstored"),
        ([code(UNKNOWN), code("publish.forbidden")], UNKNOWN),
        ([None, code("publish.invalid")], UNKNOWN),
    ],
)
async def test_refusal_after_an_attempt_without_answer_is_unknown(replies: list[Any], outcome: str) -> None:
    assert (await publish(Bridge(*replies), PostSender)).outcome == outcome


async def test_proxy_holds_answers_back_and_loses_them_with_the_connection() -> None:
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                received.append(data)
                writer.write(data.upper())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        proxy = HoldingProxy(server.sockets[0].getsockname()[1])
        async with proxy.running():
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"a")
            assert await reader.read(100) == b"A"
            proxy.hold()
            writer.write(b"b")
            answer = asyncio.create_task(reader.read(100))
            await until(lambda: received[-1] == b"b")
            assert not answer.done()
            proxy.release()
            assert await answer == b"B"
            proxy.hold()
            writer.write(b"c")
            await until(lambda: received[-1] == b"c")
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read(100)
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"d")
            assert await reader.read(100) == b"D"
            writer.close()
