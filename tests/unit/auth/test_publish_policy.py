from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.auth.publish_policy import PublishPolicy
from sanic_nats_bridge.errors import (
    BridgeError,
    InvalidCommand,
    InvalidSubject,
    PublishForbidden,
    RequestForbidden,
    SizeLimitExceeded,
)
from sanic_nats_bridge.protocol.headers import is_header_name, is_reserved_header
from sanic_nats_bridge.protocol.publish import PublishAction, PublishCommand, message_id
from tests.unit.protocol.test_headers import lines_of, tokens, values

ACTIONS: tuple[PublishAction, ...] = ("publish", "request")
ID = "f2c9a1b7e4d05c8836aa1e"
ALL: dict[str, Any] = {"publish": [">", "$KV.>", "_A.>", "_B.>"], "request": [">", "$KV.>", "_A.>", "_B.>"]}


def policy(**others: Any) -> PublishPolicy:
    settings: dict[str, Any] = {
        "max_bytes": 8,
        "headers": ["Trace", "X-Room"],
        "identity_header": "Bridge-Identity",
        "reserved": ["_A.bridge", "_B"],
    }
    return PublishPolicy(**settings | others)


def command(action: PublishAction = "publish", subject: str = "a", **fields: Any) -> PublishCommand:
    return PublishCommand(action=action, subject=subject, **{"payload": b"1", **fields})


def rejected(given_command: PublishCommand, **permissions: Any) -> BridgeError:
    with pytest.raises(BridgeError) as refused:
        policy().authorize(Permissions(**ALL | permissions), given_command)
    return refused.value


@pytest.mark.parametrize("action", ACTIONS)
def test_allowed_command_goes_to_its_real_subject(action: PublishAction) -> None:
    permissions = Permissions(**ALL, aliases={"me.": "users.7."})
    assert policy().authorize(permissions, command(action, "me.say")) == ("users.7.say", {}, b"")


@pytest.mark.parametrize("action", ACTIONS)
def test_subject_is_judged_first(action: PublishAction) -> None:
    wrong: dict[str, Any] = {"payload": b"123456789", "headers": (("Nats-Msg-Id", "x"),), "msg_id": "1"}
    forbidden = PublishForbidden if action == "publish" else RequestForbidden
    assert type(rejected(command(action, "a.*", **wrong))) is InvalidSubject
    assert type(rejected(command(action, "$JS.API.INFO", **wrong))) is forbidden
    assert type(rejected(command(action, **wrong))) is SizeLimitExceeded


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("subject", "allowed"),
    [
        ("_A.bridge.worker.1", False),
        ("_A.bridge.answer.w.x", False),
        ("_A.bridge", True),
        ("_A.bridges.x", True),
        ("_A.other", True),
        ("_B.x", False),
        ("_B", False),  # not in the list
        ("_NATSBRIDGE.shop.worker", False),
        ("me.bridge.x", False),
        ("me.other", True),
        ("in.x", False),
    ],
)
def test_reserved_subjects_are_never_allowed(action: PublishAction, subject: str, allowed: bool) -> None:
    names = {"me.": "_A.", "in.": "_B."} if subject.startswith(("me.", "in.")) else {}
    if allowed:
        policy().authorize(Permissions(**ALL, aliases=names), command(action, subject))
    else:
        error = rejected(command(action, subject), aliases=names)
        assert error.code == f"{action}.forbidden"
        assert error.subjects == (subject,)
        assert f"'{subject}'" in error.message


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("pattern", "is_valid"),
    [
        ("_A.bridge.>", False),
        ("_A.bridge.*", False),
        ("_A.bridge.a.*.b", False),
        ("_A.bridge.worker", False),
        ("_B.>", False),
        ("_B.{user}.>", False),
        ("_A.bridge", True),
        ("_A.*.worker", True),
        ("_A.>", True),
        ("_A.bridges.>", True),
        ("_BB.>", True),
        ("$KV.>", True),
        (">", True),
        ("*.bridge.>", True),
    ],
)
def test_pattern_below_reserved_prefix_is_an_error(action: PublishAction, pattern: str, is_valid: bool) -> None:
    permissions = Permissions(**{action: ["a.>", pattern]}, variables={"user": "7"})  # type: ignore[arg-type]
    if is_valid:
        policy().check(permissions)
    else:
        with pytest.raises(ValueError, match=rf"^{action} must not allow the bridge's own subjects, got '_"):
            policy().check(permissions)
    policy().check(Permissions(["a.>", pattern], history=[pattern], variables={"user": "7"}))


def test_data_may_have_the_largest_size() -> None:
    policy().authorize(Permissions(**ALL), command(payload=b"12345678"))
    error = rejected(command(payload=b"123456789"))
    assert (error.code, error.message, error.subjects) == ("limit.size", "Data must be at most 8 bytes", ("a",))


# Headers


def test_client_headers_have_names_of_setting() -> None:
    headers = (("trace", "1"), ("X-ROOM", "7"), ("Trace", "2"))
    authorized = policy().authorize(Permissions(**ALL), command(headers=headers))
    assert authorized.headers == {"Trace": ["1", "2"], "X-Room": ["7"]}
    assert lines_of(authorized.block) == [("Trace", "1"), ("Trace", "2"), ("X-Room", "7")]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "name", ["Other", "Nats-Msg-Id", "nats-expected-stream", "NATS-TTL", "Bridge-Identity", "bridge-identity", "Status"]
)
def test_other_header_is_forbidden(action: PublishAction, name: str) -> None:
    error = rejected(command(action, headers=(("Trace", "1"), (name, "x"))))
    assert (error.code, error.subjects) == ("publish.forbidden", ("a",))
    assert error.message == f"Not an allowed header: '{name}'"


@pytest.mark.parametrize("action", ACTIONS)
def test_author_is_named_and_encoded(action: PublishAction) -> None:
    permissions = Permissions(**ALL, identity="größe\r\nNats-Msg-Id: 1")
    authorized = policy().authorize(permissions, command(action, headers=(("Trace", "1"),)))
    assert lines_of(authorized.block) == [
        ("Bridge-Identity", "gr%C3%B6%C3%9Fe%0D%0ANats-Msg-Id%3A%201"),
        ("Trace", "1"),
    ]


def test_message_id_is_hashed_with_author_and_real_subject() -> None:
    names = {"aliases": {"me.": "users.7."}}
    for identity in ("ada", None):
        permissions = Permissions(**ALL, **names, identity=identity)  # type: ignore[arg-type]
        authorized = policy().authorize(permissions, command(subject="me.say", ack=True, msg_id=ID))
        assert ("Nats-Msg-Id", message_id(identity, "users.7.say", ID)) in lines_of(authorized.block)


def test_message_id_without_identity_must_have_128_bits() -> None:
    assert ID.isalnum()
    assert len(ID) == 22
    policy().authorize(Permissions(**ALL), command(ack=True, msg_id=ID))
    policy().authorize(Permissions(**ALL, identity="ada"), command(ack=True, msg_id="1"))
    error = rejected(command(ack=True, msg_id=ID[1:]))
    assert isinstance(error, InvalidCommand)
    assert "at least 22 characters" in error.message


@given(
    st.lists(tokens, max_size=4, unique_by=str.lower).map(
        lambda names: [name for name in names if not is_reserved_header(name) and name.lower() != "bridge-identity"]
    ),
    st.lists(
        st.tuples(st.one_of(tokens, st.sampled_from(("BRIDGE-IDENTITY", "nats-Msg-Id", "status"))), values), max_size=4
    ),
    st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1)),
    st.booleans(),
)
def test_no_client_sets_a_header_of_the_bridge(
    names: list[str], headers: list[tuple[str, str]], identity: str | None, has_id: bool
) -> None:
    asked = command(
        headers=(*headers, *((name.swapcase(), "x") for name in names)), ack=has_id, msg_id=ID if has_id else None
    )
    known = {name.lower() for name in names}
    permissions = Permissions(**ALL, identity=identity)
    try:
        authorized = policy(headers=names).authorize(permissions, asked)
    except PublishForbidden:
        assert any(name.lower() not in known for name, _ in headers)
        return
    assert all(name.lower() in known for name, _ in headers)
    plain = policy().authorize(permissions, command(ack=has_id, msg_id=asked.msg_id))
    lines, own = (lines_of(block) if block else [] for block in (authorized.block, plain.block))
    assert lines[: len(own)] == own
    given_lines = lines[len(own) :]
    assert sorted(value for _, value in given_lines) == sorted(value for _, value in asked.headers)
    assert {name for name, _ in given_lines} == set(names) == authorized.headers.keys()
    assert all(is_header_name(name) for name, _ in lines)
