"""Hostile publishes and requests: what leaves the bridge, read from the socket, and what clients of NATS get.

All is sent in both ways, to both servers. Each command is refused, or exactly one message goes out that has the
subject, the payload and the headers of the command, the author first.
"""

import asyncio
import base64
import binascii
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import unquote
from uuid import uuid4

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_injection import PIECES
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, ServerName, flush, running, until
from tests.support.nats_wire import RecordingProxy, Sent
from tests.support.streams import jetstream_fixture

shared_jetstream = jetstream_fixture("module")

SEED = 20_261_130
COMMANDS = 1500
UNLIMITED: dict[str, Any] = {
    "publish_rate": 1e6,
    "publish_burst": 100_000,
    "command_rate": 1e6,
    "command_burst": 100_000,
    "max_bad_commands": 100_000,
}
REFUSED = {"publish.forbidden", "request.forbidden", "subject.invalid", "command.invalid", "limit.size"}

Send: TypeAlias = Callable[[str, bytes], Awaitable[dict[str, Any]]]
"""Sends the JSON of a command for an action; returns the reply."""


class Nats:
    """A client of NATS that sees all messages, and a stream."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.name = f"t{uuid4().hex[:12]}"
        self.seen: list[Msg] = []

    async def prepare(self) -> None:
        async def keep(message: Msg) -> None:
            self.seen.append(message)

        async def echo(message: Msg) -> None:
            if message.reply:
                await self.client.publish(message.reply, message.data)

        await self.client.jetstream().add_stream(name=self.name, subjects=[f"{self.name}.stored.>"])
        await self.client.subscribe(f"{self.name}.>", cb=keep)
        await self.client.subscribe(f"{self.name}.svc.echo", cb=echo)
        await flush(self.client)


@pytest.fixture
async def nats(shared_jetstream: NatsServer) -> AsyncIterator[Nats]:
    client = Client()
    await client.connect(shared_jetstream.url, connect_timeout=WAIT_SECONDS)
    nats = Nats(client)
    await nats.prepare()
    yield nats
    await client.jetstream().delete_stream(nats.name)
    await client.close()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture(params=["websocket", "post"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by_post(bridge: Bridge, user: str) -> Send:
    async def send(action: str, command: bytes) -> dict[str, Any]:
        return (await bridge.post(f"/{action}", command, user=user))[1]

    return send


async def sending(bridge: Bridge, way: str, user: str = "0") -> AsyncIterator[Send]:
    if way == "post":
        yield by_post(bridge, user)
        return
    async with bridge.websocket(f"user={user}") as client:

        async def send(action: str, command: bytes) -> dict[str, Any]:
            named = b'{"action":"%b",%b' % (action.encode(), command[1:])
            return await client.ask(named.decode())

        yield send


def user_of(request: Request) -> int:
    return int(request.args.get("user") or request.headers["user"])


# Random commands

SUBJECT = re.compile(r"[!-)+-=?-~]+")
NAMES = (
    *("Trace", "trace", "TRACE", "X-Room"), "Nats-Msg-Id", "nats-msg-id", "NATS-TTL", "Nats-Expected-Stream", "Nats-X",
    "Bridge-Identity", "bridge-identity", "BRIDGE-IDENTITY", "Status", "Description", "Other", "Trace:", "Trace ",
    "Tra ce", "Trace\r\nNats-Msg-Id", "Trace\0", "Trace\n", "", "\r\n", "Tracé", "x" * 65, "\u2028",
)  # fmt: skip
VALUES = (
    *("x", "", " x ", "a: b", "é", "\x85", "\u2028", "\x0b", "\x7f", "\U0001f600"), "a\r\nNats-Msg-Id: 1", "a\n", "\r",
    "a\0b", "\r\n\r\nPUB b 0\r\n", "x" * 1024, "x" * 1025, "é" * 513, "\ud800", "NATS/1.0", "a\tb",
)  # fmt: skip
LONE_SURROGATE = '"\\ud800"'
DATA = (
    *("1", "null", "1.50", '"é"', '"\\u00e9"', '"\\r\\nPUB b 0\\r\\n\\r\\n"', "[1,\r\n2]", "{\r\n}", '{"a":1,"a":2}'),
    '"\\u0000"', "[" * 40 + "]" * 40, '"-ERR \'x\'\\r\\n"', LONE_SURROGATE, '"x"   ', "12345678901234567890",
)  # fmt: skip
TEXTS = (
    "",
    "a",
    "\r\nPUB b 0\r\n\r\n",
    "\r\n",
    "+OK\r\nSUB > 9\r\n",
    "é\0",
    "\ud800",
    base64.b64encode(b"\r\n").decode(),
)


class Draw:
    """Random commands, and what has to become of each of them."""

    def __init__(self, prefix: str) -> None:
        self._random = random.Random(SEED)
        self._prefix = prefix

    def command(self) -> tuple[str, bytes, tuple[str, bytes, list[tuple[str, str]]] | None]:
        """Return an action, the JSON of a command, and the subject, payload and headers that have to go out, if any."""
        draw = self._random
        action = draw.choice(["publish", "request"])
        subject = self._subject(action)
        fields: dict[str, Any] = {"subject": subject}
        data, payload = self._data(fields)
        headers = self._headers()
        if headers:
            fields["headers"] = headers
        ack = action == "publish" and subject.startswith(f"{self._prefix}.stored.") and draw.random() < 0.3
        if ack:
            fields["ack"] = True
            fields["msg_id"] = draw.choice([uuid4().hex, uuid4().hex, "x\r\n", "x" * 65])
        if action == "request":
            fields["timeout"] = draw.choice([0.001, 1e-300, 1e-9])  # most have no answer
        fields["id"] = draw.choice([1, "a", "\r\n", "\0"])
        text = json.dumps(fields, ensure_ascii=draw.random() < 0.5 or _has_surrogate(fields))
        command = f"{text[:-1]}{'' if data is None else f', {chr(34)}data{chr(34)}: {data}'}}}".encode()
        if payload is None or not _is_valid(subject) or not _are_valid(headers) or _has_surrogate(fields):
            return action, command, None
        if ack and not re.fullmatch(r"[A-Za-z0-9._~-]{1,64}", fields["msg_id"]):
            return action, command, None
        return action, command, (subject, payload, _grouped(headers))

    def _subject(self, action: str) -> str:
        draw = self._random
        if draw.random() < 0.6:
            return f"{self._prefix}.{draw.choice(['svc.echo', 'stored.a', 'a', 'b.c-d', '$x', '_INBOX.a', '{v}', 'é'])}"
        start = draw.choice([f"{self._prefix}.", "", "_INBOX.", "$JS.API.", "_NATSBRIDGE."])
        return start + "".join(draw.choices(PIECES, k=draw.randint(1, 4)))

    def _data(self, fields: dict[str, Any]) -> tuple[str | None, bytes | None]:
        draw = self._random
        kind = draw.random()
        if kind < 0.1:
            return None, b""
        if kind < 0.5:
            data = draw.choice(DATA)
            # Half a surrogate pair isn't Unicode, which JSON must be (RFC 8259, section 8.1).
            return data, None if data == LONE_SURROGATE else data.strip().encode()
        text = draw.choice(TEXTS)
        fields["encoding"] = "text" if kind < 0.75 else "base64"
        try:
            payload = text.encode() if kind < 0.75 else base64.b64decode(text, validate=True)
        except (UnicodeEncodeError, binascii.Error, ValueError):
            payload = None
        return json.dumps(text), payload

    def _headers(self) -> dict[str, list[str]]:
        draw = self._random
        if draw.random() < 0.4:
            return {}
        # Mostly one thing is wrong, because the first one hides the others.
        wrong = draw.choice(["name", "value", "value", ""])
        names = NAMES if wrong == "name" else NAMES[:4]
        values = VALUES if wrong == "value" else VALUES[:10]
        return {
            name: draw.choices(values, k=draw.choice([0, 1, 1, 1, 1, 1, 2, 9]))
            for name in draw.sample(names, k=draw.choice([1, 1, 2]))
        }


def _is_valid(subject: str) -> bool:
    tokens = subject.split(".")
    return (
        all(SUBJECT.fullmatch(token) for token in tokens)
        and len(subject) <= 255
        and len(tokens) <= 32
        and subject[0] not in "$_"
    )


def _are_valid(headers: dict[str, list[str]]) -> bool:
    return (
        all(name.lower() in ("trace", "x-room") for name in headers)
        and all(headers.values())
        and sum(map(len, headers.values())) <= 16
        and not any(
            re.search("[\r\n\0]", value) or len(value.encode("utf-8", "surrogatepass")) > 1024
            for values in headers.values()
            for value in values
        )
    )


def _grouped(headers: dict[str, list[str]]) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for name, values in headers.items():
        found.setdefault("Trace" if name.lower() == "trace" else "X-Room", []).extend(values)
    return [(name, value) for name, values in found.items() for value in values]


def _has_surrogate(fields: object) -> bool:
    return re.search(r"\\ud8[0-9a-f]{2}(?!\\ud[c-f])", json.dumps(fields)) is not None


async def test_each_command_is_refused_or_becomes_one_message(
    shared_jetstream: NatsServer, nats: Nats, server: ServerName, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    def permissions(request: Request) -> Permissions:
        return Permissions(publish=[">"], request=[">"], identity="a\r\nNats-Msg-Id: ü")

    draw = Draw(nats.name)
    expected: list[tuple[str, bytes, list[tuple[str, str]]]] = []
    async with (
        RecordingProxy.before(shared_jetstream) as proxy,
        running(
            servers=proxy.url,
            server=server,
            permissions=permissions,
            publish_headers=["Trace", "X-Room"],
            **UNLIMITED,
        ) as bridge,
    ):
        async for send in sending(bridge, way):
            for _ in range(COMMANDS):
                action, command, message = draw.command()
                reply = await send(action, command)
                assert (reply.get("code") not in REFUSED) == (message is not None), (command, reply)
                assert reply["type"] == "reply"
                if message is not None:
                    expected.append(message)
        await until(lambda: len(proxy.sent()) >= len(expected))
        sent = proxy.sent()
    assert len(expected) > COMMANDS / 10
    assert [(each.subject, each.payload) for each in sent] == [each[:2] for each in expected]
    for each, (_, _, headers) in zip(sent, expected, strict=True):
        assert each.headers[0] == ("Bridge-Identity", b"a%0D%0ANats-Msg-Id%3A%20%C3%BC")
        own = each.headers[1:]
        if own[:1] and own[0][0] == "Nats-Msg-Id":
            assert re.fullmatch(rb"[A-Za-z0-9_-]{32}", own.pop(0)[1])
        assert own == [(name, value.encode()) for name, value in headers]
        assert is_own_reply(each, bridge)
    await flush(nats.client)
    own_subjects = [each for each in sent if each.subject.startswith(f"{nats.name}.")]
    await until(lambda: len(nats.seen) == len(own_subjects))
    assert [(each.subject, each.data) for each in nats.seen] == [(each.subject, each.payload) for each in own_subjects]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def is_own_reply(sent: Sent, bridge: Bridge) -> bool:
    """Return True if the subject for answers is empty, or one of this worker that can't be guessed."""
    prefix = f"_NATSBRIDGE.{bridge.app.name}.answer.{bridge.runtime.sessions.worker}."
    return not sent.reply or re.fullmatch(re.escape(prefix) + r"[A-Za-z0-9_-]{22}", sent.reply) is not None


# Subjects

OWN_CONTROL = "_CTL.shop"
ALIASES = {"js.": "$JS.API.", "kv.": "$KV.prefs.", "ctl.": f"{OWN_CONTROL}.", "ctls.": "_CTL.", "in.": "_INBOX.",
           "me.": "users.7.", "sys.": "$SYS.REQ."}  # fmt: skip
PERMITTED = ["{tenant}.>", "*.a.>", ">", "$KV.prefs.open", "_CTL.>"]
FORBIDDEN = (
    *("$JS.API.STREAM.DELETE.S", "$JS.API.STREAM.INFO.S", "$JS.ACK.S.C.1", "$SYS.REQ.SERVER.PING", "$SRV.PING"),
    *("$KV.prefs.a", "$KV.other.open", "$KV.prefs", "$O.files.C.a", "$JS.FC.x", "$NRG.x", "$G"),
    *("js.STREAM.DELETE.S", "sys.SERVER.PING", "kv.other", "_INBOX.a", "_INBOX.a.b", "in.a", "in.a.b"),
    *(f"{OWN_CONTROL}.answer.w.x", f"{OWN_CONTROL}.worker.w", f"{OWN_CONTROL}.all.permissions.x"),
    *("ctl.answer.w.x", "ctl.worker.w", "ctls.shop.answer.w.x", "ctls.shop.all.permissions.w.x"),
    *("_NATSBRIDGE.shop.answer.w.x", "_NATSBRIDGE.x", "_NATSBRIDGE", "users.7.say", "users.7.a.b", "$", "_", "_x"),
    *("secret.a", "x.hidden", "$KV.prefs.open.x", "_a.a.b"),
    # The real names of aliased subjects.
    *("$KV.prefs.open", "_CTL.other"),
)  # fmt: skip
INVALID = (
    *("*", ">", "a.*", "a.>", "$KV.*", "a b", "a\r\nPUB b 0", "a\tb", "", ".", "a.", ".a", "a..b", "a\0"),
    *("é", "a\x7fb", "a." * 32 + "a", "a" * 256),
)  # fmt: skip
ALLOWED = ("say", "a.b", "me.say", "users.8.say", "acme.a", "kv.open", "ctls.other", "a.$JS", "a._INBOX.b")


@pytest.mark.parametrize("action", ["publish", "request"])
async def test_no_subject_outside_the_list_reaches_nats(
    shared_jetstream: NatsServer, server: ServerName, way: str, action: str
) -> None:
    def permissions(request: Request) -> Permissions:
        lists: dict[str, Any] = {action: PERMITTED}
        return Permissions(
            **lists, deny=["secret.>", "*.hidden"], variables={"tenant": "acme"}, aliases=ALIASES, identity="ada"
        )

    async with (
        RecordingProxy.before(shared_jetstream) as proxy,
        running(
            servers=proxy.url, server=server, permissions=permissions, control_prefix=OWN_CONTROL, **UNLIMITED
        ) as bridge,
    ):
        async for send in sending(bridge, way):
            codes = [await code(send, action, subject) for subject in FORBIDDEN]
            assert codes == [f"{action}.forbidden"] * len(FORBIDDEN), list(zip(FORBIDDEN, codes, strict=True))
            codes = [await code(send, action, subject) for subject in INVALID]
            assert codes == ["subject.invalid"] * len(INVALID), list(zip(INVALID, codes, strict=True))
            # The other list is empty.
            other = "request" if action == "publish" else "publish"
            assert [await code(send, other, subject) for subject in ALLOWED] == [f"{other}.forbidden"] * len(ALLOWED)
            for subject in ALLOWED:
                assert await code(send, action, subject) in (None, "request.no_responders")
        await until(lambda: len(of_clients(proxy)) >= len(ALLOWED))
        real = {"me.say": "users.7.say", "kv.open": "$KV.prefs.open", "ctls.other": "_CTL.other"}
        assert of_clients(proxy) == [real.get(subject, subject) for subject in ALLOWED]


async def code(send: Send, action: str, subject: str) -> str | None:
    # Fields that would name a subject for answers, had the protocol one.
    fields = {"subject": subject, "id": 1, "reply": "b", "reply_to": "b", "real": "b", "subjects": ["b"]}
    return (await send(action, json.dumps(fields).encode())).get("code")


def of_clients(proxy: RecordingProxy) -> list[str]:
    return [each.subject for each in proxy.sent() if not each.subject.startswith(f"{OWN_CONTROL}.")]


# Authors

IDENTITIES = (
    *("ada", "a b", "a%20b", "a+b", "a/b?c=d", "größe", "名前", "\U0001f600", "a\r\nNats-Msg-Id: 1\r\n\r\nPUB b 0\r\n"),
    *("\r", "\n", "\0", "\t", "\x7f", "\x85", "\u2028", "a: b", " ", '"', "%0D%0A", "a" * 2000),
)


async def test_author_is_named_in_one_unambiguous_value(
    shared_jetstream: NatsServer, nats: Nats, server: ServerName, way: str
) -> None:
    def permissions(request: Request) -> Permissions:
        lists: dict[str, Any] = {name: [f"{nats.name}.>"] for name in ("publish", "request")}
        return Permissions(identity=IDENTITIES[user_of(request)], **lists)

    body = json.dumps({"subject": f"{nats.name}.svc.echo", "data": 1, "id": 1}).encode()
    async with (
        RecordingProxy.before(shared_jetstream) as proxy,
        running(servers=proxy.url, server=server, permissions=permissions) as bridge,
    ):
        for user, _ in enumerate(IDENTITIES):
            async for send in sending(bridge, way, str(user)):
                assert (await send("publish", body))["success"]
                assert (await send("request", body))["success"]
        await until(lambda: len(proxy.sent()) == 2 * len(IDENTITIES))
        sent = proxy.sent()
    for number, each in enumerate(sent):
        ((name, value),) = each.headers
        assert name == "Bridge-Identity"
        assert re.fullmatch(rb"(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+", value)
        assert unquote(value.decode(), errors="strict") == IDENTITIES[number // 2]
    await until(lambda: len(nats.seen) == 2 * len(IDENTITIES))
    headers = [message.headers or {} for message in nats.seen]
    assert [{name: unquote(value) for name, value in each.items()} for each in headers] == [
        {"Bridge-Identity": identity} for identity in IDENTITIES for _ in range(2)
    ]


async def test_client_without_identity_has_no_author(
    shared_jetstream: NatsServer, nats: Nats, server: ServerName, way: str
) -> None:
    async with (
        RecordingProxy.before(shared_jetstream) as proxy,
        running(
            servers=proxy.url, server=server, publish=[f"{nats.name}.>"], publish_headers=["Trace"],
            identity_header="X-Author", **UNLIMITED,
        ) as bridge,
    ):  # fmt: skip
        async for send in sending(bridge, way):
            for name in ("X-Author", "x-author", "X-AUTHOR", "x-Author", "X-Author ", "X-Author:", "x_author"):
                fields = {"subject": f"{nats.name}.a", "headers": {name: ["ada"]}}
                assert (await send("publish", json.dumps(fields).encode()))["code"] in (
                    "publish.forbidden",
                    "command.invalid",
                )
            fields = {"subject": f"{nats.name}.a", "headers": {"trace": ["X-Author: ada"]}}
            assert (await send("publish", json.dumps(fields).encode()))["success"]
        await until(lambda: bool(proxy.sent()))
        assert [each.headers for each in proxy.sent()] == [[("Trace", b"X-Author: ada")]]


# Messages of others


async def test_no_client_suppresses_the_message_of_another(
    shared_jetstream: NatsServer, nats: Nats, server: ServerName, way: str
) -> None:
    identities = ["ada", "bob", "ada\0", None, None]

    def permissions(request: Request) -> Permissions:
        user = user_of(request)
        aliases = {"me.": f"{nats.name}.stored."} if user == 2 else {}
        return Permissions(publish=[f"{nats.name}.stored.>"], identity=identities[user], aliases=aliases)

    def body(subject: str, msg_id: str) -> bytes:
        return json.dumps({"subject": subject, "ack": True, "msg_id": msg_id, "id": 1}).encode()

    name, long = f"{nats.name}.stored", "0" * 22
    async with running(servers=shared_jetstream.url, server=server, permissions=permissions) as bridge:
        replies: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for user, _ in enumerate(identities):
            async for send in sending(bridge, way, str(user)):
                prefix = "me" if user == 2 else name
                for subject in ("a", "b"):
                    replies[user, subject] = [
                        await send("publish", body(f"{prefix}.{subject}", long)) for _ in range(2)
                    ]
                short = await send("publish", body(f"{prefix}.a", "0" * 21))
                # Without an identity, an id that others could guess is refused.
                assert short.get("code") == ("command.invalid" if identities[user] is None else None)
                assert short.get("duplicate") == (None if identities[user] is None else False)
        for (user, _), (first, second) in replies.items():
            # Two clients without an identity are one for NATS. So their ids have 128 bits that no other client knows.
            assert first["duplicate"] is (user == 4)
            assert (second["duplicate"], second["sequence"]) == (True, first["sequence"])
        assert len({first["sequence"] for first, _ in replies.values()}) == 8


async def test_client_that_knows_a_subject_for_answers_cannot_use_it(
    shared_jetstream: NatsServer, nats: Nats, server: ServerName, way: str
) -> None:
    asked: list[Msg] = []
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def keep(message: Msg) -> None:
        asked.append(message)
        await nats.client.publish(message.reply, await answers.get())

    await nats.client.subscribe(f"{nats.name}.svc.slow", cb=keep)
    await flush(nats.client)
    lists: dict[str, Any] = {name: [">"] for name in ("subscribe", "publish", "request")}
    async with running(servers=shared_jetstream.url, server=server, request_timeout=WAIT_SECONDS, **lists) as bridge:
        waiting = asyncio.create_task(bridge.post("/request", {"subject": f"{nats.name}.svc.slow"}))
        await until(lambda: bool(asked))
        async for send in sending(bridge, way):
            for action in ("publish", "request"):
                assert await code(send, action, asked[0].reply) == f"{action}.forbidden"
        async with bridge.websocket() as client:
            reply = await client.ask({"subjects": [asked[0].reply]})
            assert reply["code"] == "subject.forbidden"
            # A pattern that NATS lets match it doesn't show it.
            await client.follow(">")
            await answers.put(b'"the answer"')
            assert (await waiting)[1]["data"] == "the answer"
            await nats.client.publish(f"{nats.name}.end", b"1")
            await flush(nats.client)
            assert (await client.frame())["subject"] == f"{nats.name}.end"
