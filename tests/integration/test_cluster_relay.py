import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.cluster.control_channel import UnknownWorkerError
from sanic_nats_bridge.cluster.known_workers import KnownWorkers
from sanic_nats_bridge.cluster.questions import Questions
from sanic_nats_bridge.cluster.relay import Relay
from sanic_nats_bridge.errors import InternalError
from sanic_nats_bridge.protocol.messages import Command
from sanic_nats_bridge.protocol.session_ids import digest, new_session_id, new_worker_id
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, Publisher, ServerName, flush, running, subscribed, until
from tests.support.clock import held
from tests.support.raw import sessions
from tests.unit.sessions.test_session import Worker


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


async def permissions(request: Request) -> Permissions | None:
    """Return the same subjects for every user except a guest; the cookie gives the identity, if any."""
    user = request.cookies.get("user")
    return None if user == "guest" else Permissions(["*.open.>", "*.open"], identity=user)


@contextlib.asynccontextmanager
async def workers(url: str, server: ServerName = "sanic", **settings: Any) -> AsyncIterator[tuple[Bridge, Bridge]]:
    """Serve two bridges that are workers of one app."""
    options: dict[str, Any] = {
        "control_prefix": f"_T.{uuid4().hex}",
        "unsubscribe_delay": 0.1,
        "permissions": permissions,
    }
    options |= settings
    async with (
        running(servers=url, server=server, **options) as home,
        running(servers=url, server=server, **options) as other,
    ):
        yield home, other


@pytest.fixture
async def both(shared_nats: NatsServer, server: ServerName) -> AsyncIterator[tuple[Bridge, Bridge]]:
    async with workers(shared_nats.url, server) as both:
        yield both


def control_prefix(bridge: Bridge) -> str:
    return str(bridge.extension.settings.control_prefix)


def address(bridge: Bridge) -> str:
    """Return the control subject on which the worker takes requests."""
    return f"{control_prefix(bridge)}.worker.{sessions(bridge).worker}"


@contextlib.asynccontextmanager
async def bystander(url: str) -> AsyncIterator[Client]:
    """Connect another client to the same NATS."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def test_commands_posted_to_other_worker_are_executed(both: tuple[Bridge, Bridge], publisher: Publisher) -> None:
    home, other = both
    subject = publisher.subject("open")
    async with home.events() as events, home.websocket() as websocket:
        for client in (events, websocket):
            command = {"session": client.session, "subjects": [subject], "id": 7}
            assert await other.post("/subscribe", command) == (200, subscribed(subject) | {"id": 7})
            await publisher.send(subject, b"1")
            assert await client.data(1) == [1]
            status, reply = await other.post("/unsubscribe", command)
            assert (status, reply["success"], reply["id"]) == (200, True, 7)
            await publisher.send(subject, b"2")
            assert (await home.post("/unsubscribe", command))[0] == 409


REFUSED = [
    ("/subscribe", {"subjects": ["secret.>"]}, 403),
    ("/subscribe", {"subjects": ["a..b"], "id": "x"}, 400),
    ("/unsubscribe", {"subjects": ["a.open"], "id": 3}, 409),
    ("/subscribe", {"subjects": [f"{number}.open" for number in range(200)]}, 429),
    ("/subscribe", {"subjects": []}, 400),
    ("/subscribe", {"subjects": ["a.open"], "after": 1}, 400),
    ("/subscribe", {"subjects": ["a.open"], "action": "unsubscribe"}, 400),
]


@pytest.mark.parametrize(("path", "command", "status"), REFUSED)
async def test_rejection_is_identical_on_every_worker(
    both: tuple[Bridge, Bridge], path: str, command: dict[str, Any], status: int
) -> None:
    async with both[0].events() as client:
        body = command | {"session": client.session}
        answers = [await bridge.post(path, body) for bridge in both]
        assert answers[0] == answers[1]
        assert answers[0][0] == status


async def test_command_rate_is_limited_per_session_across_workers(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, command_rate=0.001, command_burst=2) as (home, other), home.events() as client:
        body = {"session": client.session, "subjects": ["a.open"]}
        assert [(await bridge.post("/subscribe", body))[0] for bridge in (other, home)] == [200, 200]
        async with other.http.post(f"{other.url}/subscribe", json=body) as response:
            assert (response.status, (await response.json())["code"]) == (429, "limit.rate")
            assert int(response.headers["Retry-After"]) >= 1
        await other.post("/subscribe", body)
        await other.post("/subscribe", body)
        frames = [await client.frame()]
        assert (frames[-1]["type"], frames[-1]["code"]) == ("close", 4429)


async def test_relayed_invalid_commands_count_towards_session_limit(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, max_bad_commands=2) as (home, other), home.events() as client:
        for _ in range(3):
            assert (await other.post("/subscribe", {"session": client.session, "subjects": ["a..b"]}))[0] == 400
        assert (await client.frame())["code"] == 4429


async def test_session_worker_checks_identity_of_relayed_command(both: tuple[Bridge, Bridge]) -> None:
    home, other = both
    async with home.events(Cookie="user=ada") as client:
        body = {"session": client.session, "subjects": ["a.open"]}
        unknown = await other.post("/subscribe", body | {"session": new_session_id(new_worker_id())}, Cookie="user=bob")
        assert await other.post("/subscribe", body, Cookie="user=bob") == unknown
        assert (unknown[0], unknown[1]["code"]) == (404, "session.unknown")
        assert await other.post("/subscribe", body) == unknown
        assert (await other.post("/subscribe", body, Cookie="user=guest"))[1]["code"] == "auth.required"
        assert (await other.post("/subscribe", body, Cookie="user=ada"))[0] == 200


async def test_ended_session_is_unknown_on_every_worker(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, control_prefix="_T.ended", subscribe=["a"]) as other:
        async with running(servers=shared_nats.url, control_prefix="_T.ended", subscribe=["a"]) as home:
            async with home.events() as client:
                body = {"session": client.session, "subjects": ["a"]}
                assert (await other.post("/subscribe", body))[0] == 200
            await until(lambda: not home.extension.sessions)
            answers = [await bridge.post("/subscribe", body) for bridge in (home, other)]
        # And when its worker is there no longer.
        answers.append(await other.post("/subscribe", body))
        assert answers == [answers[0]] * 3
        assert (answers[0][0], answers[0][1]["code"]) == (404, "session.unknown")


@pytest.mark.parametrize("wrong", ["", "x", "x" * 48 + "y", "*" * 48, ">" + "x" * 47, "ü" * 48, "." * 48, " " * 48])
async def test_malformed_session_id_is_not_sent_to_nats(bridge: Bridge, wrong: str) -> None:
    assert bridge.extension.client is not None
    sent = bridge.extension.client.stats["out_msgs"]
    assert (await bridge.post("/subscribe", {"session": wrong, "subjects": ["a"]}))[1]["code"] == "session.unknown"
    assert bridge.extension.client.stats["out_msgs"] == sent


async def test_session_of_dead_worker_is_unknown_if_nats_has_no_headers() -> None:
    with NatsServer(config="no_header_support: true") as server:
        async with workers(server.url) as (home, other):
            async with home.events() as client:
                body = {"session": client.session, "subjects": ["a.open"]}
                assert (await other.post("/subscribe", body))[0] == 200
            body |= {"session": new_session_id(new_worker_id())}
            status, reply = await other.post("/subscribe", body)
            assert (status, reply["code"]) == (404, "session.unknown")


async def test_only_local_commands_work_while_nats_is_disconnected(nats_server: NatsServer) -> None:
    async with workers(nats_server.url) as (home, other), home.events() as client:
        nats_server.stop()
        await until(lambda: other.extension.client is None and home.extension.client is None)
        body = {"session": client.session, "subjects": ["a.open"]}
        status, reply = await other.post("/subscribe", body | {"id": 1})
        assert (status, reply["code"], reply["id"]) == (503, "nats.unavailable", 1)
        status, reply = await home.post("/subscribe", body)
        assert (status, reply["active"]) == (200, False)
        nats_server.start()
        await until(lambda: home.runtime.control.ready and other.runtime.control.ready)
        assert (await other.post("/unsubscribe", body))[0] == 200


async def test_silent_worker_makes_session_unreachable(shared_nats: NatsServer) -> None:
    # NATS reports that another worker is absent, so this one exists.
    short: dict[str, Any] = {"relay_timeout": 0.1, "confirm_timeout": 0.1}
    async with workers(shared_nats.url, **short) as (_, other), bystander(shared_nats.url) as silent:
        worker = new_worker_id()
        await silent.subscribe(f"{control_prefix(other)}.worker.{worker}", cb=_ignore)
        await flush(silent)
        body = {"session": new_session_id(worker), "subjects": ["a.open"]}
        status, reply = await other.post("/subscribe", body)
        assert (status, reply["code"]) == (503, "session.unreachable")


async def _ignore(_: Msg) -> None: ...


class Answers:
    """Other workers, from the point of view of this worker."""

    worker = new_worker_id()

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []

    def check_ready(self) -> None: ...

    async def request(self, worker: str, payload: bytes, seconds: float) -> bytes:
        self.asked.append(payload)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def relay(worker: Worker, *answers: bytes | Exception) -> Relay:
    channel = Answers(*answers)
    return Relay(worker.sessions, channel.request, Questions(channel, KnownWorkers()))


JUNK = [b"", b"{", b"\xff", b"null", b"[]", b'{"refusal":1}', b'{"reply":{"type":"reply"}}', b"{}", b"[" * 100_000]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_malformed_relay_reply_raises_internal_error(junk: bytes) -> None:
    session_id = new_session_id(new_worker_id())
    with pytest.raises(InternalError, match="Internal error"):
        await relay(Worker(), b"1", junk).execute(session_id, None, Command(action="subscribe"))


def request(**fields: Any) -> bytes:
    return json.dumps({"session": "0" * 64, "identity": None, "command": {"subjects": ["a.open"]}} | fields).encode()


STRICT = [
    (b"", "command.invalid"),
    (b"{", "command.invalid"),
    (b"\xff\xfe", "command.invalid"),
    (b"null", "command.invalid"),
    (b"[" * 100_000, "command.invalid"),
    (request(session="0" * 63), "command.invalid"),
    (request(session=5), "command.invalid"),
    (request(session="0" * 64 + "\n"), "command.invalid"),
    (request(identity=7), "command.invalid"),
    (request(command=None), "command.invalid"),
    (request(command={"subjects": "a"}), "command.invalid"),
    (request(command={"action": "dance", "subjects": ["a"]}), "command.invalid"),
    (request(command={"action": "publish", "subjects": ["a"]}), "command.unsupported"),
    (request(command={"subjects": ["a"], "from": 1}), "command.unsupported"),
    (request(command={"subjects": ["a" * 70_000]}), "limit.size"),
    (request(), "session.unknown"),
]


@pytest.mark.parametrize(("data", "code"), STRICT, ids=range(len(STRICT)))
async def test_relay_request_is_validated_like_browser_command(data: bytes, code: str) -> None:
    answer = await relay(Worker()).answer(data)
    assert json.loads(answer)["refusal"]["code"] == code


async def test_relay_answers_only_valid_reply_subjects(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (home, other), bystander(shared_nats.url) as stranger:
        prefix = control_prefix(home)
        elsewhere = ["orders.new", "$JS.API.STREAM.DELETE.a", f"{prefix}.all", f"{prefix}.reply.x.0", address(other)]
        recorded = [await stranger.subscribe(subject) for subject in elsewhere]
        for subject in elsewhere:
            await stranger.publish(address(home), request(), subject)
        assembler = f"{prefix}.reply.{new_worker_id()}.1-0"
        replies = await stranger.subscribe(assembler)
        await stranger.publish(address(home), request(), assembler)
        await replies.next_msg(WAIT_SECONDS)
        await flush(stranger)
        assert [subscription.pending_msgs for subscription in recorded] == [0] * len(recorded)


async def test_session_id_is_never_sent_over_nats(both: tuple[Bridge, Bridge], shared_nats: NatsServer) -> None:
    home, other = both
    async with bystander(shared_nats.url) as tap, home.events() as client:
        seen: list[bytes] = []

        async def note(message: Msg) -> None:
            if ".all." not in message.subject:
                seen.append(f"{message.subject} {message.reply} ".encode() + message.data)

        await tap.subscribe(f"{control_prefix(home)}.>", cb=note)
        await flush(tap)
        async with held():  # so that no question is repeated
            assert (await other.post("/subscribe", {"session": client.session, "subjects": ["a.open"]}))[0] == 200
        await until(lambda: len(seen) == 4)
        assert digest(client.session).encode() in seen[2]
        assert b"a.open" in seen[2]
        assert not any(client.session[16:].encode() in each for each in seen)


async def test_command_exceeding_nats_max_payload_is_rejected() -> None:
    with NatsServer(config="max_payload: 4096") as small:
        async with workers(small.url) as (home, other), home.events() as client:
            body = {"session": client.session, "subjects": ["a.open"], "id": "x" * 5_000}
            assert (await other.post("/subscribe", body))[1]["code"] == "limit.size"
            assert (await home.post("/subscribe", body))[0] == 200
            assert (await other.post("/unsubscribe", body | {"id": 1}))[0] == 200


async def test_clients_have_no_access_to_control_subjects(shared_nats: NatsServer) -> None:
    options: dict[str, Any] = {"servers": shared_nats.url, "control_prefix": "_SHOP.ctl", "subscribe": [">", "_SHOP.>"]}
    async with running(**options) as bridge, bridge.websocket() as client, bystander(shared_nats.url) as stranger:
        for pattern in ("_SHOP.>", "_SHOP.*.>", "_SHOP.ctl.>", "_SHOP.ctl.all", "_SHOP.*.all", "_NATSBRIDGE.>"):
            assert (await client.ask({"subjects": [pattern]}))["code"] == "subject.forbidden", pattern
        await client.follow("_SHOP.other", ">", "*.*.all")
        await stranger.publish("_SHOP.ctl.all", b"1")
        await stranger.publish("_SHOP.other", b"2")
        assert await client.data(1) == [2]


async def test_update_permissions_cannot_allow_control_subjects(shared_nats: NatsServer) -> None:
    options: dict[str, Any] = {"servers": shared_nats.url, "control_prefix": "_SHOP2", "subscribe": ["_SHOP2"]}
    async with running(**options) as bridge, bridge.websocket() as client:
        await client.follow("_SHOP2")
        await bridge.extension.update_permissions(Permissions(["_SHOP2.>", "_SHOP2"]), session=client.session)
        assert (await client.ask({"subjects": ["_SHOP2.all"]}))["code"] == "subject.forbidden"


async def test_apps_sharing_nats_server_are_isolated(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, subscribe=["a"]) as one,
        running(servers=shared_nats.url, subscribe=["a"]) as other,
        one.events() as client,
    ):
        body = {"session": client.session, "subjects": ["a"]}
        assert (await other.post("/subscribe", body))[0] == 404
        assert (await one.post("/subscribe", body))[0] == 200


async def test_relay_retries_when_worker_is_temporarily_unknown() -> None:
    reply = b'{"reply":{"type":"reply","success":true,"message":"done"}}'
    answers = Answers(UnknownWorkerError("x"), b"1", reply)
    session_id = new_session_id(new_worker_id())
    command = Command(action="subscribe", subjects=["a"], session=session_id)
    questions = Questions(answers, KnownWorkers())
    outcome = await Relay(Worker().sessions, answers.request, questions).execute(session_id, None, command)
    assert outcome.reply.message == "done"
    assert [each.hex() for each in answers.asked[:2]] == [digest(session_id)] * 2
    assert len(answers.asked) == 3
    assert json.loads(answers.asked[2]) == {
        "session": digest(session_id),
        "identity": None,
        "command": {"action": "subscribe", "subjects": ["a"]},
    }


async def test_relayed_command_times_out_on_session_worker() -> None:
    worker = Worker()
    session, _ = worker.open()
    async with held() as clock:
        async with session._commands.lock:
            answer = asyncio.create_task(relay(worker).answer(request(session=session.key)))
            await clock.forward_until(answer.done)
        assert json.loads(answer.result())["refusal"]["code"] == "session.unreachable"
        again = await relay(worker).answer(request(session=session.key))
        assert json.loads(again)["reply"]["success"]


async def test_error_on_session_worker_is_logged_and_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    session, _ = worker.open()
    monkeypatch.setattr(worker.sessions, "get", None)
    answer = await relay(worker).answer(request(session=session.key))
    assert json.loads(answer)["refusal"] == {
        "code": "internal",
        "message": "Internal error",
        "subjects": [],
        "retry_after": 0,
    }
    assert "A command from another worker has failed" in caplog.text
