import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import (
    BridgeError,
    NatsUnavailable,
    NoResponders,
    PublishForbidden,
    PublishInvalid,
    PublishRateExceeded,
    PublishUnknown,
    RequestForbidden,
    RequestLimitExceeded,
    UnreachableSession,
)
from sanic_nats_bridge.protocol.messages import Outcome
from sanic_nats_bridge.protocol.publish import PublishCommand
from sanic_nats_bridge.publishing.clients import Awaited, ClientPublisher
from sanic_nats_bridge.publishing.publications import PublishFunctions
from sanic_nats_bridge.publishing.publisher import Publisher
from sanic_nats_bridge.sessions.deadlines import Deadlines
from sanic_nats_bridge.settings import Settings
from tests.support.clock import turns
from tests.support.fakes import FakeOutlet, FakePublishLink

ALLOWED = Permissions(publish=["rooms.>", "other"], request=["svc.>"], aliases={"me.": "rooms.7."}, identity="ada")
STORED = b'{"stream":"S","seq":7}'


def publish(subject: str = "rooms.8", **fields: Any) -> PublishCommand:
    return PublishCommand(action="publish", subject=subject, payload=b"1", encoding="json", id=5, **fields)


def request(subject: str = "svc.a", **fields: Any) -> PublishCommand:
    return PublishCommand(action="request", subject=subject, payload=b"1", encoding="json", id=6, **fields)


class Clients:
    """Clients without a session, on a connection that the test answers."""

    def __init__(self, **options: Any) -> None:
        self.link = FakePublishLink()
        self.publisher = Publisher(self.link)
        self.functions = PublishFunctions()
        self.deadlines = Deadlines()
        self.permissions = ALLOWED
        settings = Settings.resolve(options, {})
        self.clients = ClientPublisher(
            settings, self.publisher, settings.publish_policy(), self.functions, self.deadlines
        )
        self.publisher.start("_BRIDGE.answer.w")
        self.publisher.established()

    @property
    def outlet(self) -> FakeOutlet:
        assert self.link.connection is not None
        return self.link.connection

    @property
    def subjects(self) -> list[str]:
        return [subject.decode() for subject, _, _ in self.outlet.messages]

    async def execute(self, command: PublishCommand, address: str = "10.0.0.1") -> Outcome:
        return await self.clients.execute(command, lambda: self.permissions, address)

    async def answered(self, command: PublishCommand, payload: bytes, headers: bytes = b"") -> Outcome:
        task = asyncio.create_task(self.execute(command))
        await turns()
        self.outlet.answer(payload, headers)
        return await task

    def send(self, command: PublishCommand, client: str = "ada") -> Awaited:
        allowed = self.clients.authorize(self.permissions, command)
        sent = self.clients.send(command, allowed, command.payload, client, client)
        assert isinstance(sent, Awaited)
        return sent


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Clients]]:
    made = []

    def create(**options: Any) -> Clients:
        made.append(Clients(**options))
        return made[-1]

    yield create
    for each in made:
        each.publisher.stop()
        await turns()
        assert each.publisher.in_progress == 0
        assert len(each.clients._checks) == 0


async def test_publish_goes_out_by_its_real_name_and_names_its_author(make: Callable[..., Clients]) -> None:
    clients = make()
    reply, error = await clients.execute(publish("me.say"))
    assert error is None
    assert (reply.id, reply.action, reply.success) == (5, "publish", True)
    assert reply.message == "Successfully published to: 'me.say'"
    assert clients.outlet.messages == [(b"rooms.7.say", b"1", b"NATS/1.0\r\nBridge-Identity: ada\r\n\r\n")]


async def test_acknowledgement_and_answer_are_the_replies(make: Callable[..., Clients]) -> None:
    clients = make(expose_headers=["Kind"])
    reply, _ = await clients.answered(publish(ack=True), STORED)
    assert (reply.stream, reply.sequence, reply.duplicate) == ("S", 7, False)
    reply, _ = await clients.answered(request(), b"[1]", b"NATS/1.0\r\nKind: x\r\nOther: y\r\n\r\n")
    assert (reply.subject, reply.data) == ("svc.a", msgspec.Raw(b"[1]"))
    assert reply.headers == msgspec.Raw(b'{"Kind":["x"]}')
    assert clients.clients.in_progress == 0


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (publish("secret"), PublishForbidden),
        (request("rooms.7"), RequestForbidden),
        (publish("svc.a"), PublishForbidden),
    ],
)
async def test_nothing_outside_the_permissions_is_sent(
    make: Callable[..., Clients], command: PublishCommand, error: type[BridgeError]
) -> None:
    clients = make()
    with pytest.raises(error):
        await clients.execute(command)
    assert not clients.subjects


async def test_error_of_nats_names_the_subject_as_the_client_does(make: Callable[..., Clients]) -> None:
    clients = make()
    clients.permissions = Permissions(request=["rooms.>"], aliases={"me.": "rooms.7."})
    reply, error = await clients.answered(request("me.a"), b"", b"NATS/1.0 503\r\n\r\n")
    assert isinstance(error, NoResponders)
    assert reply.subjects == ("me.a",)
    assert "rooms" not in reply.message
    clients.link.connection = None
    with pytest.raises(NatsUnavailable) as raised:
        await clients.execute(request("me.a"))
    assert raised.value.subjects == ("me.a",)


async def test_timeout_of_a_client_is_cut_to_the_setting(make: Callable[..., Clients]) -> None:
    clients = make(request_timeout=3)
    loop = asyncio.get_running_loop()
    for timeout, seconds in ((None, 3), (2.0, 2), (100.0, 3)):
        began = loop.time()
        outcome = await clients.execute(request(timeout=timeout))
        assert outcome.reply.code == "request.timeout"
        assert loop.time() == began + seconds


async def test_clients_without_session_have_a_budget_for_each_identity_or_address(
    make: Callable[..., Clients],
) -> None:
    clients = make(publish_rate=1, publish_burst=2)

    async def sent(address: str = "10.0.0.1") -> bool:
        # Also refused ones count.
        with pytest.raises((PublishRateExceeded, PublishForbidden)) as raised:
            await clients.execute(publish("secret"), address)
        waits.append(raised.value.retry_after)
        return raised.type is PublishForbidden

    waits: list[float] = []

    assert [await sent() for _ in range(3)] == [True, True, False]
    assert not await sent("10.0.0.2")
    clients.permissions = Permissions()
    assert [await sent() for _ in range(3)] == [True, True, False]
    assert await sent("10.0.0.2")
    assert waits == [0, 0, pytest.approx(1), pytest.approx(2), 0, 0, pytest.approx(1), 0]


async def test_requests_in_progress_are_limited_for_a_client_and_for_the_worker(make: Callable[..., Clients]) -> None:
    clients = make(max_requests=2, max_requests_per_worker=4)
    first = clients.send(request())
    clients.send(request())
    with pytest.raises(RequestLimitExceeded, match=r"At most 2 .*\(max_requests\)") as raised:
        clients.send(request())
    assert (raised.value.retry_after, raised.value.subjects) == (1, ("svc.a",))
    clients.send(request(), "bob")
    clients.send(request(), "eve")
    with pytest.raises(RequestLimitExceeded, match="This server has too many"):
        clients.send(request(), "mallory")
    first.release()
    clients.link.connection = None
    # One that fails takes no place.
    with pytest.raises(NatsUnavailable):
        clients.send(request(), "mallory")
    clients.link.connection = FakeOutlet()
    clients.send(request(), "mallory")
    assert clients.clients.in_progress == 4


async def test_unacknowledged_publishes_are_limited_for_a_client(make: Callable[..., Clients]) -> None:
    clients = make()
    first, *_ = [clients.send(publish(ack=True)) for _ in range(256)]
    with pytest.raises(PublishRateExceeded, match="Too many publishes await their acknowledgement") as raised:
        clients.send(publish(ack=True))
    assert raised.value.retry_after == 1
    clients.send(publish(ack=True), "bob")
    first.release()
    clients.send(publish(ack=True))


async def test_function_of_the_app_replaces_or_refuses_publishes_but_no_requests(make: Callable[..., Clients]) -> None:
    clients = make()
    seen: list[Any] = []

    def check(publication: Any) -> bytes:
        seen.append((publication.session, publication.identity, publication.subject, publication.data))
        if publication.subject == "other":
            raise ValueError("not now")
        return b"replaced"

    clients.functions.add(">", None, check)
    await clients.execute(publish("me.say"))
    assert clients.outlet.messages[0][:2] == (b"rooms.7.say", b"replaced")
    with pytest.raises(PublishInvalid, match="not now"):
        await clients.execute(publish("other"))
    await clients.answered(request(), b"1")
    assert clients.subjects == ["rooms.7.say", "svc.a"]
    assert seen == [(None, "ada", "rooms.7.say", 1), (None, "ada", "other", 1)]


@pytest.mark.parametrize("taken_away", [True, False])
async def test_permissions_count_as_they_are_after_the_check(make: Callable[..., Clients], taken_away: bool) -> None:
    clients = make()
    checked: list[str] = []

    async def check(publication: Any) -> None:
        checked.append(publication.subject)
        await asyncio.sleep(0)
        clients.permissions = Permissions(
            publish=[] if taken_away else ["rooms.>"], aliases={"me.": "rooms.9."}, identity="ada"
        )

    clients.functions.add(">", None, check)
    if taken_away:
        with pytest.raises(PublishForbidden):
            await clients.execute(publish("me.say"))
        assert (checked, clients.subjects) == (["rooms.7.say"], [])
    else:
        # The name means another subject now, so the app is asked again.
        await clients.execute(publish("me.say"))
        assert (checked, clients.subjects) == (["rooms.7.say", "rooms.9.say"], ["rooms.9.say"])


async def test_checks_in_progress_are_limited_for_a_client_and_for_the_worker(make: Callable[..., Clients]) -> None:
    clients = make(max_permissions_calls_per_client=2, max_permissions_calls=3)
    proceed = asyncio.Event()

    async def check(_: Any) -> None:
        await proceed.wait()

    clients.functions.add(">", None, check)
    tasks = [asyncio.create_task(clients.execute(publish())) for _ in range(2)]
    await turns()
    with pytest.raises(PublishRateExceeded, match="await the app's check"):
        await clients.execute(publish())
    clients.permissions = Permissions(publish=["rooms.>"], identity="bob")
    tasks += [asyncio.create_task(clients.execute(publish()))]
    await turns()
    clients.permissions = Permissions(publish=["rooms.>"], identity="eve")
    with pytest.raises(PublishRateExceeded, match="await the app's check"):
        await clients.execute(publish())
    proceed.set()
    await asyncio.gather(*tasks)
    assert len(clients.subjects) == 3


@pytest.mark.parametrize(
    ("command", "error"), [(publish(ack=True), PublishUnknown), (request(), UnreachableSession)], ids=["ack", "request"]
)
async def test_worker_that_stops_waits_for_no_answer(
    make: Callable[..., Clients], command: PublishCommand, error: type[BridgeError]
) -> None:
    clients = make()
    task = asyncio.create_task(clients.execute(command))
    await turns()
    clients.deadlines.stop()
    with pytest.raises(error, match=re.escape("the server is going away") + "|The server is going away"):
        await task
    await turns()
    assert (clients.publisher.in_progress, clients.clients.in_progress) == (0, 0)


async def test_disconnected_client_frees_its_place(make: Callable[..., Clients]) -> None:
    clients = make()
    task = asyncio.create_task(clients.execute(request()))
    await turns()
    assert clients.clients.in_progress == 1
    task.cancel()
    await turns()
    assert (clients.publisher.in_progress, clients.clients.in_progress) == (0, 0)
