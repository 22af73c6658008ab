from itertools import product
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


# Comparison with brute force: no code of the bridge decides, not even about patterns

_TOKENS = ("a", "b", "$x", "_y", "_NATSBRIDGE")
_EVERY_SUBJECT = [".".join(tokens) for size in (1, 2, 3) for tokens in product(_TOKENS, repeat=size)]
_some_patterns = st.lists(
    st.tuples(
        st.sampled_from(("a", "b", "$x", "_y", "*", "{v}", "me")),
        st.lists(st.sampled_from(("a", "b", "$x", "_y", "*", "{v}")), max_size=2),
        st.sampled_from(("", ".>")),
    ).map(lambda parts: ".".join([parts[0], *parts[1]]) + parts[2])
    | st.just(">"),
    max_size=3,
)
_some_aliases = st.dictionaries(
    st.sampled_from(("a.", "b.", "a.b.", "$x.", "_y.a.")),
    st.sampled_from(("b.", "a.", "b.a.", "$x.", "_y.", "_y.b.")),
    max_size=2,
)


def _matches(pattern: str, subject: str) -> bool:
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, tokens = wanted[:-1], tokens[: len(wanted) - 1] if len(tokens) >= len(wanted) else []
        if not tokens and wanted:
            return False
    return len(wanted) == len(tokens) and all(want in ("*", token) for want, token in zip(wanted, tokens, strict=True))


def _may_publish(
    patterns: list[str], denied: list[str], aliases: dict[str, str], variables: dict[str, str], name: str
) -> str | None:
    """Return the real subject if the client may publish to it."""
    alias = max((alias for alias in aliases if name.startswith(alias)), key=len, default="")
    real = aliases.get(alias, "") + name[len(alias) :]
    first = real.split(".")[0]
    patterns = [pattern.replace("{v}", variables["v"]) for pattern in patterns]
    opened = any(
        _matches(pattern, real) and (first[0] not in "$_" or pattern.split(".")[0] == first) for pattern in patterns
    )
    shut = any(_matches(pattern.replace("{v}", variables["v"]), real) for pattern in denied)
    hidden = not alias and any(real.startswith(target) for target in aliases.values())
    own = first == "_NATSBRIDGE" or real.startswith("_y.b.")
    return real if opened and not shut and not hidden and not own else None


@given(_some_patterns, _some_patterns, _some_patterns, _some_aliases, st.sampled_from(("a", "b", "a$")))
def test_subjects_of_clients_are_those_of_brute_force(
    published: list[str], requested: list[str], denied: list[str], aliases: dict[str, str], value: str
) -> None:
    variables = {"v": value}
    permissions = Permissions(deny=denied, aliases=aliases, variables=variables, publish=published, request=requested)
    checked = policy(reserved=["_y.b", "_INBOX"])
    for action, patterns in zip(ACTIONS, (published, requested), strict=True):
        for name in _EVERY_SUBJECT:
            try:
                found = checked.authorize(permissions, command(action, name)).subject
            except (PublishForbidden, RequestForbidden):
                found = None
            assert found == _may_publish(patterns, denied, aliases, variables, name), name


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
