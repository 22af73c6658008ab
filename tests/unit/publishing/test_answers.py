import asyncio
import re

import pytest

from sanic_nats_bridge.errors import NatsRefused, NatsUnavailable, RequestTimedOut
from sanic_nats_bridge.publishing.answers import Answers, Expected
from tests.support.clock import turns
from tests.support.fakes import FakeOutlet


def _read(headers: bytes, payload: bytes) -> bytes:
    if payload == b"bad":
        raise NatsRefused("bad")
    return payload


EXPECTED = Expected(_read, lambda seconds: RequestTimedOut(f"{seconds:g}"), NatsUnavailable)


class Asking:
    """Questions on one connection."""

    def __init__(self) -> None:
        self.outlet = FakeOutlet()
        self.answers = Answers()
        self.answers.start("_BRIDGE.answer.w")

    def ask(self, subject: str = "svc", *, seconds: float = 5) -> asyncio.Future[bytes]:
        return self.answers.ask(self.outlet, subject, b"?", b"", expected=EXPECTED, seconds=seconds)

    async def check_freed(self) -> None:
        await turns()
        assert len(self.answers) == 0
        assert not self.outlet.questions
        assert not self.answers._awaited


@pytest.fixture
async def asking() -> Asking:
    return Asking()


async def test_answer_is_the_result_and_the_subscription_has_ended_by_itself(asking: Asking) -> None:
    future = asking.ask()
    assert asking.outlet.messages == [(b"svc", b"?", b"")]
    asking.outlet.answer(b"!")
    assert await future == b"!"
    await asking.check_freed()
    assert not asking.outlet.removed


async def test_subscription_goes_on_after_a_status_of_nats(asking: Asking) -> None:
    future = asking.ask()
    asking.outlet.answer(b"", b"NATS/1.0 503\r\n\r\n")
    assert await future == b""
    await asking.check_freed()
    assert asking.outlet.removed == [1]


async def test_subjects_of_answers_cannot_be_guessed(asking: Asking) -> None:
    for _ in range(100):
        asking.ask()
    replies = {reply for reply, _ in asking.outlet.questions.values()}
    assert len(replies) == 100
    assert all(re.fullmatch(r"_BRIDGE\.answer\.w\.[A-Za-z0-9_-]{22}", reply) for reply in replies)
    assert {len(reply) for reply in replies} == {asking.answers.reply_length}


async def test_error_of_the_answer_is_raised(asking: Asking) -> None:
    future = asking.ask()
    asking.outlet.answer(b"bad")
    with pytest.raises(NatsRefused, match="bad"):
        await future
    await asking.check_freed()


async def test_question_without_answer_ends_after_its_time(asking: Asking) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(RequestTimedOut, match=r"^2\.5$"):
        await asking.ask(seconds=2.5)
    assert loop.time() == began + 2.5
    await asking.check_freed()
    assert asking.outlet.removed == [1]


async def test_cancelled_question_frees_its_place_and_ignores_its_answer(asking: Asking) -> None:
    first, second = asking.ask(), asking.ask()
    first.cancel()
    asking.outlet.answer(b"late", sid=1)
    await turns()
    assert (len(asking.answers), list(asking.outlet.questions)) == (1, [2])
    task = asyncio.create_task(_result(second))
    await turns()
    task.cancel()
    await asking.check_freed()
    assert asking.outlet.removed == [2]


async def _result(future: asyncio.Future[bytes]) -> bytes:
    return await future


async def test_unawaited_error_is_not_logged(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    asking.ask()
    asking.outlet.answer(b"bad")
    await asking.check_freed()
    assert not caplog.records


async def test_end_of_the_connection_ends_questions_in_turns(asking: Asking) -> None:
    futures = [asking.ask(f"svc.{number % 7}") for number in range(600)]
    asking.answers.fail("NATS is disconnected")
    later = asking.ask()
    assert sum(future.done() for future in futures) == 250
    await turns()
    assert all(str(future.exception()) == "NATS is disconnected" for future in futures)
    assert not later.done()
    asking.answers.fail("this worker is stopping", per_turn=None)
    assert later.done()
    await asking.check_freed()


async def test_denied_subject_ends_its_questions_only(asking: Asking) -> None:
    denied, other = [asking.ask("a"), asking.ask("a")], asking.ask("b")
    asking.answers.denied("a")
    asking.answers.denied("c")
    for future in denied:
        with pytest.raises(NatsRefused, match="does not let the bridge publish to this subject"):
            await future
    assert not other.done()
    asking.outlet.answer(b"!", sid=3)
    assert await other == b"!"
    await asking.check_freed()


async def test_refused_subscription_is_logged_once(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    futures = [asking.ask(), asking.ask()]
    for _, listener in list(asking.outlet.questions.values()):
        listener.refused()
    for future in futures:
        with pytest.raises(NatsRefused, match="receive an answer"):
            await future
    (record,) = caplog.records
    assert "allow its NATS user to subscribe to '_BRIDGE.answer.w.*'" in record.getMessage()
    await asking.check_freed()
