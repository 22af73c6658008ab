import json

import pytest

from sanic_nats_bridge.errors import (
    BridgeError,
    InternalError,
    NatsRefused,
    PublishRateExceeded,
    RateLimitExceeded,
    RequestLimitExceeded,
    SubscriptionLimitExceeded,
)
from sanic_nats_bridge.protocol.messages import Outcome, Reply
from sanic_nats_bridge.routes.replies import misdirected, outcome_response, rejection_response


@pytest.mark.parametrize(
    ("error", "status"), [(NatsRefused("not that", ["a"]), 403), (InternalError("Internal error"), 500)]
)
def test_rejection_is_failed_reply_with_status_of_its_error(error: BridgeError, status: int) -> None:
    response = outcome_response(Outcome.rejected(error, "subscribe", 7))
    assert response.status == status
    assert json.loads(response.body or b"") == {
        "type": "reply",
        "id": 7,
        "action": "subscribe",
        "success": False,
        "code": error.code,
        "message": error.message,
    } | ({"subjects": list(error.subjects)} if error.subjects else {})


@pytest.mark.parametrize("kind", [RateLimitExceeded, PublishRateExceeded, RequestLimitExceeded])
def test_rate_limit_response_has_retry_after_header(kind: type[BridgeError]) -> None:
    response = rejection_response(kind("At most 2 commands a second", retry_after=1.3), "publish")
    assert (response.status, response.headers["retry-after"]) == (429, "2")


def test_other_limit_response_has_no_retry_after_header() -> None:
    response = rejection_response(SubscriptionLimitExceeded("Too many"), "subscribe")
    assert (response.status, "retry-after" in response.headers) == (429, False)


def test_reply_response_is_json_that_must_not_be_cached() -> None:
    response = outcome_response(Outcome(Reply(success=True, message="fine")))
    assert response.content_type == "application/json"
    assert dict(response.headers) == {
        "sanic-nats-bridge": "1",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    assert response.body is not None
    assert json.loads(response.body) == {"type": "reply", "success": True, "message": "fine"}


def test_unsupported_http_version_gets_421_response() -> None:
    response = misdirected("subscribe")
    assert (response.status, json.loads(response.body or b"")["code"]) == (421, "command.unsupported")
    # HTTP/3 takes no capitals there, and Sanic sends names as they are.
    assert all(name == name.lower() for name, _ in response.headers.items())
