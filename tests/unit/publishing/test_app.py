import asyncio
from typing import Any

import pytest

from sanic_nats_bridge.publishing.app import AppPublisher
from sanic_nats_bridge.publishing.publisher import Publisher
from sanic_nats_bridge.publishing.results import Acknowledgement
from tests.support.clock import turns
from tests.support.fakes import FakeOutlet, FakePublishLink


@pytest.fixture
def link() -> FakePublishLink:
    return FakePublishLink()


@pytest.fixture
async def outlet(link: FakePublishLink) -> FakeOutlet:
    assert link.connection is not None
    return link.connection


@pytest.fixture
async def app(link: FakePublishLink) -> AppPublisher:
    publisher = Publisher(link)
    publisher.start("_BRIDGE.answer.w")
    return AppPublisher(publisher, request_timeout=7)


async def test_publish_encodes_data_and_headers(app: AppPublisher, outlet: FakeOutlet) -> None:
    headers = {"Trace": "x", "Tag": ["a", "b"]}
    assert await app.publish("a.b", {"n": 1}, headers, ack=False, msg_id="m") is None
    block = b"NATS/1.0\r\nTrace: x\r\nTag: a\r\nTag: b\r\nNats-Msg-Id: m\r\n\r\n"
    assert await app.publish("a.b", "ü", None, ack=False, msg_id=None) is None
    assert outlet.messages == [(b"a.b", b'{"n":1}', block), (b"a.b", "ü".encode(), b"")]


async def test_acknowledgement_and_answer_are_returned(app: AppPublisher, outlet: FakeOutlet) -> None:
    publishing = asyncio.create_task(app.publish("a", b"", None, ack=True, msg_id=None))
    await turns()
    outlet.answer(b'{"stream":"S","seq":3,"duplicate":true}')
    assert await publishing == Acknowledgement("S", 3, duplicate=True)
    asking = asyncio.create_task(app.request("svc", [1], {"A": "b"}, None))
    await turns()
    outlet.answer(b"2")
    assert (await asking).json() == 2
    assert outlet.messages[1] == (b"svc", b"[1]", b"NATS/1.0\r\nA: b\r\n\r\n")


@pytest.mark.parametrize(("seconds", "allowed"), [(None, 7), (0.5, 0.5), (60, 60)])
async def test_timeout_of_request_is_that_of_the_setting_or_the_argument(
    app: AppPublisher, seconds: float | None, allowed: float
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(Exception, match=f"No answer within {allowed:g} s"):
        await app.request("svc", b"", None, seconds)
    assert loop.time() == began + allowed


@pytest.mark.parametrize("subject", ["", "a.*", "a.>", "a b", "a\r\nPUB b 0", "a..b", "ä", "a" * 256, None, b"a"])
async def test_subject_must_be_literal(app: AppPublisher, outlet: FakeOutlet, subject: Any) -> None:
    for call in (app.publish(subject, b"", None, ack=False, msg_id=None), app.request(subject, b"", None, None)):
        with pytest.raises(ValueError, match="subject must be valid and have no wildcards"):
            await call
    assert not outlet.messages


async def test_unsendable_message_is_an_error_of_the_caller(app: AppPublisher, outlet: FakeOutlet) -> None:
    for ack in (True, False):
        with pytest.raises(ValueError, match="data is too large: NATS accepts messages of at most 1024 bytes"):
            await app.publish("a", b"x" * 1025, None, ack=ack, msg_id=None)
    with pytest.raises(ValueError, match="data is too large"):
        await app.request("a", b"x" * 1025, None, None)
    with pytest.raises(ValueError, match=r"headers must be valid: .* without CR, LF and NUL"):
        await app.publish("a", b"", {"A": "b\r\nNats-Msg-Id: 1"}, ack=False, msg_id=None)
    with pytest.raises(ValueError, match=r"headers must be valid: .* without CR, LF and NUL"):
        await app.publish("a", b"", None, ack=True, msg_id="1\r\nA: b")
    with pytest.raises(TypeError, match="object"):
        await app.publish("a", object(), None, ack=False, msg_id=None)
    assert not outlet.messages


async def test_app_waits_while_nats_accepts_no_data(app: AppPublisher, outlet: FakeOutlet) -> None:
    outlet.unsent_bytes = 5 * 1024 * 1024
    publishing = asyncio.create_task(app.publish("a", b"", None, ack=False, msg_id=None))
    await turns()
    assert not publishing.done()
    outlet.unsent_bytes = 0
    await publishing
    assert len(outlet.messages) == 1
