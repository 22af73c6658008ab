import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from sanic_nats_bridge.errors import InternalError, NatsUnavailable, PublishInvalid, UnreachableSession
from sanic_nats_bridge.protocol.headers import Header
from sanic_nats_bridge.publishing.publications import Encoding, Publication, PublishFunctions
from sanic_nats_bridge.sessions.deadlines import Deadlines


class Say(msgspec.Struct):
    text: str
    loud: bool = False


class Checking:
    """Functions of an app, and the publications that they got."""

    def __init__(self) -> None:
        self.functions = PublishFunctions()
        self.limits = Deadlines()
        self.got: list[Publication[Any, Any]] = []

    def returning(self, result: Any = None, pattern: str = ">", schema: Any = None) -> None:
        def function(publication: Publication[Any, Any]) -> Any:
            self.got.append(publication)
            return result

        self.functions.add(pattern, schema, function)

    def calling(self, function: Callable[[Publication[Any, Any]], object], pattern: str = ">") -> None:
        self.functions.add(pattern, None, function)

    async def check(
        self,
        subject: str = "rooms.7.say",
        data: bytes = b'{"text":"hi"}',
        encoding: Encoding = "json",
        headers: Sequence[Header] = (),
        identity: str | None = "ada",
        session: Any = None,
    ) -> bytes:
        return await self.functions.check(
            subject, data, encoding, headers, identity=identity, session=session, limits=self.limits, seconds=3
        )


@pytest.fixture
def checking() -> Checking:
    return Checking()


async def test_without_function_the_data_stays(checking: Checking) -> None:
    assert await checking.check(data=b'{"text": 1e2}') == b'{"text": 1e2}'
    checking.returning(b"x", "other.>")
    assert not checking.functions.concern("rooms.7.say")
    assert await checking.check(data=b"invalid") == b"invalid"
    assert not checking.got


async def test_first_function_that_matches_is_called_alone(checking: Checking) -> None:
    checking.returning(b"1", "other.>")
    checking.returning(b"2", "rooms.*.say")
    checking.returning(b"3", "rooms.>")
    assert checking.functions.concern("rooms.7.say")
    assert await checking.check() == b"2"
    assert await checking.check("rooms.7.write") == b"3"
    assert [each.subject for each in checking.got] == ["rooms.7.say", "rooms.7.write"]


@pytest.mark.parametrize("subject", ["$KV.prefs.a", "_x.y"])
async def test_wildcard_in_first_place_checks_reserved_subjects_too(checking: Checking, subject: str) -> None:
    checking.returning(b"checked")
    assert await checking.check(subject) == b"checked"


async def test_publication_has_session_identity_subject_data_and_headers(checking: Checking) -> None:
    checking.returning(None, schema=Say)
    session, headers = object(), [("Trace", "x"), ("Tag", "a"), ("Trace", "y")]
    assert await checking.check(headers=headers, session=session) == b'{"text":"hi"}'
    assert await checking.check(identity=None, data=b'{"text":"a","loud":true}') == b'{"text":"a","loud":true}'
    first, second = checking.got
    assert (first.session, first.identity, first.subject) == (session, "ada", "rooms.7.say")
    assert (first.data, first.headers) == (Say("hi"), {"Trace": ["x", "y"], "Tag": ["a"]})
    assert (second.session, second.identity, second.data, second.headers) == (None, None, Say("a", loud=True), {})


@pytest.mark.parametrize(
    ("data", "encoding", "decoded"),
    [
        (b'{"a":[1,2.5,null]}', "json", {"a": [1, 2.5, None]}),
        (b"null", "json", None),
        (b"", "", None),
        (b"caf\xc3\xa9", "text", "café"),
        (b"\xff\x00", "base64", b"\xff\x00"),
        (b"", "text", ""),
        (b"", "base64", b""),
    ],
)
async def test_data_without_schema_is_json_string_or_bytes(
    checking: Checking, data: bytes, encoding: Encoding, decoded: Any
) -> None:
    checking.returning()
    assert await checking.check(data=data, encoding=encoding) == data
    assert checking.got[0].data == decoded
    assert type(checking.got[0].data) is type(decoded)


@pytest.mark.parametrize(
    ("schema", "data", "encoding", "decoded"),
    [
        (str, b"hi", "text", "hi"),
        (bytes, b"\xff", "base64", b"\xff"),
        (Say | None, b"", "", None),
        (list[int], b"[1]", "json", [1]),
    ],
)
async def test_schema_may_be_any_type(
    checking: Checking, schema: Any, data: bytes, encoding: Encoding, decoded: Any
) -> None:
    checking.returning(schema=schema)
    assert await checking.check(data=data, encoding=encoding) == data
    assert checking.got[0].data == decoded


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        (b'{"text":1}', "json", r"Expected `str`, got `int` - at `\$.text`"),
        (b"{}", "json", "missing required field `text`"),
        (b"null", "json", "got `null`"),
        (b"", "", "got `null`"),
        (b"hi", "text", "got `str`"),
        (b"\xff", "base64", "got `bytes`"),
        (b'{"text"', "json", "truncated"),
        (b'{"text":"\xff"}', "json", "Invalid data"),
        (b'{"other":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "json", "nested too deeply"),
    ],
)
async def test_data_that_does_not_fit_the_schema_is_invalid(
    checking: Checking, data: bytes, encoding: Encoding, message: str
) -> None:
    checking.returning(schema=Say)
    with pytest.raises(PublishInvalid, match=message):
        await checking.check(data=data, encoding=encoding)
    assert not checking.got


@pytest.mark.parametrize(
    ("result", "payload"),
    [
        (b"x", b"x"),
        ("ü", "ü".encode()),
        ({"a": 1}, b'{"a":1}'),
        (Say("b"), b'{"text":"b","loud":false}'),
        (b"", b""),
        (False, b"false"),
    ],
)
async def test_result_is_published_in_place_of_the_data(checking: Checking, result: Any, payload: bytes) -> None:
    checking.returning(result)
    assert await checking.check() == payload


async def test_function_may_be_async(checking: Checking) -> None:
    async def function(publication: Publication[Any, Any]) -> dict[str, Any]:
        await asyncio.sleep(2.9)
        return {"of": publication.identity}

    checking.calling(function)
    assert await checking.check() == b'{"of":"ada"}'


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("No shouting, please"), "No shouting, please"),
        (ValueError(), "The data is refused"),
        (ValueError("x" * 1000), "x" * 500),
        (ValueError("\ud800é"), "?é"),
    ],
)
async def test_value_error_refuses_with_its_message(
    checking: Checking, error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Publication[Any, Any]) -> None:
        raise error

    async def refuse_later(publication: Publication[Any, Any]) -> None:
        refuse(publication)

    checking.calling(refuse, "rooms.>")
    checking.calling(refuse_later)
    for subject in ("rooms.7.say", "other"):
        with pytest.raises(PublishInvalid) as raised:
            await checking.check(subject)
        assert raised.value.message == message
    assert not caplog.records


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "function",
    [
        lambda _: _raise(KeyError("secret")),
        lambda _: _raise(NatsUnavailable("secret")),
        lambda _: _raise(TimeoutError("secret")),
        lambda _: _raise(asyncio.CancelledError("secret")),
        lambda _: object(),
        lambda _: "\ud800",
    ],
    ids=["error", "bridge error", "timeout of its own", "cancelled", "object", "surrogate"],
)
async def test_failure_of_function_is_internal_and_logged(
    checking: Checking, function: Callable[[Publication[Any, Any]], object], caplog: pytest.LogCaptureFixture
) -> None:
    checking.calling(function)
    with pytest.raises(InternalError) as raised:
        await checking.check()
    assert raised.value.message == "Internal error"
    (record,) = caplog.records
    assert record.getMessage() == "The function of on_publish('>') has failed; the publication was rejected"
    assert record.exc_info


async def test_function_that_takes_too_long_is_internal(checking: Checking, caplog: pytest.LogCaptureFixture) -> None:
    loop, ended = asyncio.get_running_loop(), []

    async def function(_: Publication[Any, Any]) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(loop.time())

    checking.calling(function)
    began = loop.time()
    with pytest.raises(InternalError):
        await checking.check()
    assert ended == [began + 3]
    (record,) = caplog.records
    assert "took longer than 'permissions_timeout' (3 s)" in record.getMessage()


async def test_cancellation_reaches_the_function(checking: Checking, caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    async def function(_: Publication[Any, Any]) -> None:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    checking.calling(function)
    task = asyncio.create_task(checking.check())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert not caplog.records


async def test_worker_that_stops_waits_for_no_function(checking: Checking, caplog: pytest.LogCaptureFixture) -> None:
    async def function(_: Publication[Any, Any]) -> None:
        await asyncio.sleep(1)

    checking.calling(function)
    task = asyncio.create_task(checking.check())
    await asyncio.sleep(0)
    checking.limits.stop()
    for check in (task, checking.check()):
        with pytest.raises(UnreachableSession, match="going away"):
            await check
    assert not caplog.records


@pytest.mark.parametrize("pattern", ["", "a..b", "a b", "a.>.b", None])
def test_invalid_pattern_is_an_error(checking: Checking, pattern: Any) -> None:
    with pytest.raises(ValueError, match="pattern must be a valid pattern"):
        checking.functions.add(pattern, None, print)


def test_unsupported_schema_or_function_is_an_error(checking: Checking) -> None:
    with pytest.raises(TypeError):
        checking.functions.add("a", dict[Say, int] | list[int] | set[int], print)
    with pytest.raises(TypeError, match="on_publish must decorate a function, got int"):
        checking.functions.add("a", None, 1)  # type: ignore[arg-type]
    assert not checking.functions.concern("a")
