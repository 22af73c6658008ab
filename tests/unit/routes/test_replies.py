import json
import logging

import pytest

from sanic_nats_bridge.errors import InternalError, NatsRefused
from sanic_nats_bridge.protocol.messages import Reply
from sanic_nats_bridge.routes.replies import misdirected, outcome, reply_response


async def answer(result: Reply | Exception) -> Reply:
    if isinstance(result, Exception):
        raise result
    return result


async def test_a_reply_passes_as_it_is() -> None:
    reply = Reply(success=True, message="fine")
    assert await outcome(answer(reply)) == (reply, None)


async def test_a_refusal_becomes_a_failed_reply_with_its_status(caplog: pytest.LogCaptureFixture) -> None:
    refused = NatsRefused("not that", ["a"])
    reply, error = await outcome(answer(refused), "subscribe", 7)
    assert error is refused
    assert reply == Reply(
        id=7, action="subscribe", success=False, code="nats.refused", message="not that", subjects=("a",)
    )
    assert caplog.records == []


async def test_a_fault_is_logged_and_shown_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    reply, error = await outcome(answer(LookupError("secret")), "unsubscribe", "x")
    assert isinstance(error, InternalError)
    assert (reply.code, reply.id) == ("internal", "x")
    assert "secret" not in reply.message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_a_reply_as_a_response_is_json_that_nobody_keeps() -> None:
    response = reply_response(Reply(success=True, message="fine"))
    assert response.content_type == "application/json"
    assert dict(response.headers) == {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    assert response.body is not None
    assert json.loads(response.body) == {"type": "reply", "success": True, "message": "fine"}


def test_what_came_by_a_version_of_http_that_does_not_serve_is_sent_elsewhere() -> None:
    response = misdirected("subscribe")
    assert (response.status, json.loads(response.body or b"")["code"]) == (421, "command.unsupported")
    # HTTP/3 takes no capitals there, and Sanic sends names as they are.
    assert all(name == name.lower() for name, _ in response.headers.items())
