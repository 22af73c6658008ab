"""Messages whose answer is awaited: requests, and publishes that JetStream acknowledges.

Each has a subscription of its own, which NATS ends after the first answer. So a subject with a thousand responders
costs the worker one answer. With one subscription for all answers, NATS would send the other 999 too.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from ..errors import BridgeError, NatsRefused
from ..log_limits import limited_logger
from ..nats.line_filter import LineFilter
from .interfaces import Outlet

__all__ = ["Answers", "Expected"]

logger = limited_logger()

T = TypeVar("T")

_FAILED_PER_TURN = 250
_NO_RESPONDERS = b"NATS/1.0 503"
_RANDOM_BYTES = 16
_RANDOM_CHARACTERS = 22
"""They can't be guessed by a client of NATS that may publish below the prefix, to answer in place of the responder."""


@dataclass(frozen=True)
class Expected(Generic[T]):
    """The treatment of an answer, and of its absence."""

    read: Callable[[bytes, bytes], T]
    """Returns the result of an answer: header block, payload. It may raise only BridgeErrors."""

    late: Callable[[float], BridgeError]
    """Creates the error for no answer within these seconds."""

    lost: Callable[[str], BridgeError]
    """Creates the error for a connection that has ended, by its reason."""


class Answers:
    """The messages of this worker whose answer is awaited."""

    def __init__(self) -> None:
        self._prefix = ""
        self.reply_length = 0
        """The length of a subject for answers."""
        self._awaited: dict[str, set[_Question[object]]] = {}
        """By subject, because NATS names only the subject of a message that it doesn't accept."""
        self._refusals = LineFilter()

    def __len__(self) -> int:
        return sum(map(len, self._awaited.values()))

    def start(self, prefix: str) -> None:
        """Set the first tokens of the subjects of answers. No other worker may use them."""
        self._prefix = prefix
        self.reply_length = len(prefix) + 1 + _RANDOM_CHARACTERS

    def ask(
        self,
        outlet: Outlet,
        subject: str,
        payload: bytes,
        headers: bytes,
        *,
        expected: Expected[T],
        seconds: float,
    ) -> asyncio.Future[T]:
        """Send a message; return its result, which may be cancelled.

        Args:
            outlet: The live connection.
            subject: The subject.
            payload: The payload.
            headers: The header block; empty for none.
            expected: The treatment of the answer.
            seconds: The time for the answer.
        """
        question: _Question[T] = _Question(outlet, expected, self._refused)
        alike = self._awaited.setdefault(subject, set())
        alike.add(question)  # type: ignore[arg-type]  # sets are invariant
        question.future.add_done_callback(lambda _: self._end(subject, question))
        question.send(subject, payload, headers, f"{self._prefix}.{secrets.token_urlsafe(_RANDOM_BYTES)}", seconds)
        return question.future

    def fail(self, reason: str, *, per_turn: int | None = _FAILED_PER_TURN) -> None:
        """End all that are awaited now, because the connection has ended.

        Args:
            reason: The reason.
            per_turn: The number of those that end in one turn of the event loop; ``None`` for all.
        """
        _fail_some(iter([question for alike in self._awaited.values() for question in alike]), reason, per_turn)

    def denied(self, subject: str) -> None:
        """End those on a subject, because NATS hasn't accepted a message on it."""
        for question in self._awaited.get(subject, ()):
            question.fail(NatsRefused("NATS does not let the bridge publish to this subject"))

    def _refused(self) -> None:
        pattern = f"{self._prefix}.*"
        if self._refusals.allows(pattern):
            logger.warning(
                "NATS lets the bridge receive no answers to requests and publishes; allow its NATS user to subscribe "
                "to '%s'",
                pattern,
            )

    def _end(self, subject: str, question: "_Question[T]") -> None:
        question.end()
        alike = self._awaited[subject]
        alike.discard(question)
        if not alike:
            del self._awaited[subject]


class _Question(Generic[T]):
    """A message whose answer is awaited. It is the listener of the subscription to the answer."""

    __slots__ = ("_expected", "_is_answered", "_on_refused", "_outlet", "_sid", "_timer", "future")

    def __init__(self, outlet: Outlet, expected: Expected[T], on_refused: Callable[[], None]) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._outlet = outlet
        self._expected = expected
        self._on_refused = on_refused
        self._is_answered = False
        self._sid = 0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, subject: str, payload: bytes, headers: bytes, reply: str, seconds: float) -> None:
        """Send the message."""
        self._sid = self._outlet.send_question(subject.encode(), payload, headers, reply, self)
        self._timer = self.future.get_loop().call_later(seconds, self._expire, seconds)

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Take the answer, after which NATS sends no other."""
        # NATS doesn't count its own status, so the subscription goes on.
        self._is_answered = not headers.startswith(_NO_RESPONDERS)
        if self.future.done():
            return
        try:
            result = self._expected.read(headers, payload)
        except BridgeError as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def confirmed(self) -> None:
        """Do nothing, because the message follows the subscription on the same connection."""

    def refused(self) -> None:
        """Note that NATS has refused the subscription to the answer."""
        self._on_refused()
        self.fail(NatsRefused("NATS does not let the bridge receive an answer"))

    def fail(self, error: BridgeError) -> None:
        """End without an answer."""
        if not self.future.done():
            self.future.set_exception(error)

    def lose(self, reason: str) -> None:
        """End because the connection has ended."""
        self.fail(self._expected.lost(reason))

    def _expire(self, seconds: float) -> None:
        self.fail(self._expected.late(seconds))

    def end(self) -> None:
        """Free what the question has used."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_answered:
            self._outlet.forget(self._sid)
        else:
            self._outlet.remove_subscription(self._sid)
        if not self.future.cancelled():
            self.future.exception()  # it may not be awaited any more


def _fail_some(questions: "Iterator[_Question[object]]", reason: str, per_turn: int | None) -> None:
    """End some of the questions, and the others in later turns of the event loop."""
    ending = list(islice(questions, per_turn))
    for question in ending:
        question.lose(reason)
    if ending and len(ending) == per_turn:
        asyncio.get_running_loop().call_soon(_fail_some, questions, reason, per_turn)
