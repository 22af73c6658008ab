import re

import pytest

from sanic_nats_bridge import errors
from sanic_nats_bridge.errors import BridgeError, CloseCode, SettingsError

# The table of the protocol, as far as the bridge has a use for it.
TABLE = {
    "InvalidCommand": ("command.invalid", 400, None),
    "UnsupportedMediaType": ("command.invalid", 415, None),
    "UnsupportedCommand": ("command.unsupported", 400, None),
    "UnsupportedQuery": ("command.unsupported", 400, 4400),
    "AuthRequired": ("auth.required", 401, 4401),
    "AuthExpired": ("auth.expired", 401, 4401),
    "InvalidSubject": ("subject.invalid", 400, None),
    "ForbiddenSubject": ("subject.forbidden", 403, None),
    "ForbiddenOrigin": ("origin.forbidden", 403, 4403),
    "ForbiddenHost": ("host.forbidden", 403, 4403),
    "HistoryForbidden": ("history.forbidden", 403, None),
    "HistoryUnavailable": ("history.unavailable", 409, None),
    "PublishForbidden": ("publish.forbidden", 403, None),
    "PublishInvalid": ("publish.invalid", 422, None),
    "PublishUnstored": ("publish.unstored", 424, None),
    "PublishUnknown": ("publish.unknown", 424, None),
    "RequestForbidden": ("request.forbidden", 403, None),
    "NoResponders": ("request.no_responders", 424, None),
    "RequestTimedOut": ("request.timeout", 424, None),
    "RequestFailed": ("request.failed", 424, None),
    "NatsRefused": ("nats.refused", 403, None),
    "UnknownSession": ("session.unknown", 404, None),
    "UnreachableSession": ("session.unreachable", 503, None),
    "NatsUnavailable": ("nats.unavailable", 503, None),
    "NotSubscribed": ("subject.not_subscribed", 409, None),
    "SizeLimitExceeded": ("limit.size", 413, 1009),
    "SubscriptionLimitExceeded": ("limit.subscriptions", 429, None),
    "OverlapLimitExceeded": ("limit.overlap", 429, None),
    "RateLimitExceeded": ("limit.rate", 429, 1013),
    "PublishRateExceeded": ("limit.publish", 429, None),
    "RequestLimitExceeded": ("limit.requests", 429, None),
    "InternalError": ("internal", 500, 1011),
}

DRAWN = re.compile(r"(?m)^(?P<indent>[ │]*)[├└]── (?P<name>\w+) +(?P<code>[\w.]+)(?:, but HTTP (?P<status>\d+))?$")


def subtree(parent: type[BridgeError]) -> dict[str, tuple[type[BridgeError], type[BridgeError]]]:
    """Name → the class and its parent, of all below."""
    found: dict[str, tuple[type[BridgeError], type[BridgeError]]] = {}
    for child in parent.__subclasses__():
        found |= {child.__name__: (child, parent)} | subtree(child)
    return found


REAL = subtree(BridgeError)


def test_tree_in_docstring_matches_class_hierarchy() -> None:
    drawn, path = {}, {0: "BridgeError"}
    for line in DRAWN.finditer(errors.__doc__ or ""):
        depth = len(line["indent"]) // 4
        path[depth] = line["name"]
        drawn[line["name"]] = (path[depth - 1], line["code"])
        assert REAL[line["name"]][0].http_status == int(line["status"] or TABLE[line["name"]][1])
    assert drawn == {name: (parent.__name__, error.code) for name, (error, parent) in REAL.items()}


def test_every_error_has_its_protocol_codes() -> None:
    real = {name: (error.code, error.http_status, error.close_code) for name, (error, _) in REAL.items()}
    assert real == TABLE


def test_every_error_is_exported() -> None:
    assert {*REAL, "BridgeError", "CloseCode", "SettingsError", "error_from_code"} == set(errors.__all__)


@pytest.mark.parametrize("error", [error for error, _ in REAL.values()], ids=REAL)
def test_error_has_message_and_subjects(error: type[BridgeError]) -> None:
    refusal = error("Not so", ["a", "b"])
    assert (str(refusal), refusal.message, refusal.subjects) == ("Not so", "Not so", ("a", "b"))
    assert error("Not so").subjects == ()


def test_error_has_reason_of_jetstream_or_code_of_service() -> None:
    assert errors.PublishUnstored("Not stored", ["a"], "maximum messages exceeded").description == (
        "maximum messages exceeded"
    )
    assert errors.RequestFailed("Failed", ["a"], "404").service_code == "404"
    assert errors.PublishUnstored("Not stored").description is errors.RequestFailed("Failed").service_code is None


def test_settings_error_is_value_error_but_not_bridge_error() -> None:
    assert issubclass(SettingsError, ValueError)
    assert not issubclass(SettingsError, BridgeError)


@pytest.mark.parametrize(
    ("code", "reconnect", "drops_pending"),
    [
        (1001, True, False),
        (1009, False, False),
        (1011, True, False),
        (1013, True, False),
        (4400, False, False),
        (4401, False, True),
        (4403, False, True),
        (4429, True, False),
    ],
)
def test_close_code_determines_reconnect_and_drops_pending(code: int, reconnect: bool, drops_pending: bool) -> None:
    assert (CloseCode(code).reconnect, CloseCode(code).drops_pending) == (reconnect, drops_pending)


def test_no_other_close_code_exists() -> None:
    assert {code.value for code in CloseCode} == {1001, 1009, 1011, 1013, 4400, 4401, 4403, 4429}


@pytest.mark.parametrize("error", [error for error, parent in REAL.values() if parent is BridgeError])
def test_error_is_restored_from_its_code(error: type[BridgeError]) -> None:
    revived = errors.error_from_code(error.code, "Refused", ["a"], 1.5)
    assert (type(revived), revived.message, revived.subjects) == (error, "Refused", ("a",))
    assert revived.retry_after == 1.5
    assert error("Not so").retry_after == 0


def test_unknown_code_becomes_internal_error() -> None:
    assert type(errors.error_from_code("of.tomorrow", "Refused")) is errors.InternalError
