"""Publishing and requests on the connection of the worker.

Nothing is buffered: a message is written to a live connection, or it fails.
"""

import asyncio

from ..errors import (
    NatsRefused,
    NatsUnavailable,
    PublishUnknown,
    RequestTimedOut,
    SizeLimitExceeded,
)
from .answers import Answers, Expected
from .interfaces import Outlet, PublishLink
from .results import Acknowledgement, Answer, read_acknowledgement, read_answer

__all__ = ["ACKNOWLEDGE_SECONDS", "Publisher"]

ACKNOWLEDGE_SECONDS = 4.0

_MAX_UNSENT_BYTES = 4 * 1024 * 1024
"""The number of bytes above which NATS accepts too little. The commands of one turn of the event loop are fewer."""
_POLL_SECONDS = 0.02
_DISCONNECTED = "NATS is disconnected"
_STOPPING = "this worker is stopping"


class Publisher:
    """The messages that one worker publishes, for its clients and for the app.

    Errors name no subject, because a client may know it by another name.

    Args:
        link: The connection to NATS. Call `established` for each new one, and `closed` when it has ended.
    """

    def __init__(self, link: PublishLink) -> None:
        self._link = link
        self._answers = Answers()
        self._connected: asyncio.Event | None = None
        """Set while NATS is connected, and when the worker stops; ``None`` before the start."""
        self._is_stopping = False

    def start(self, prefix: str) -> None:
        """Start in the present event loop.

        Args:
            prefix: The first tokens of the subjects of answers. No other worker may use them.
        """
        self._answers.start(prefix)
        self._connected = asyncio.Event()
        self._is_stopping = False

    def stop(self) -> None:
        """Let everything in progress fail."""
        self._is_stopping = True
        if self._connected is not None:
            self._connected.set()
        self._answers.fail(_STOPPING, per_turn=None)

    def established(self) -> None:
        """Note a new connection."""
        if self._connected is not None:
            self._connected.set()

    def closed(self) -> None:
        """Let the publishes and requests in progress fail, because the connection has ended."""
        if self._connected is not None and not self._is_stopping:
            self._connected.clear()
        self._answers.fail(_DISCONNECTED)

    def denied(self, subject: str) -> None:
        """Let the publishes and requests on a subject fail, because NATS hasn't accepted a message on it."""
        self._answers.denied(subject)

    @property
    def in_progress(self) -> int:
        """The number of publishes and requests whose answer is awaited."""
        return len(self._answers)

    async def connected(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the public API
        """Wait until NATS is connected.

        Raises:
            NatsUnavailable: It isn't within ``timeout`` seconds, or the worker stops.
            RuntimeError: The worker hasn't started yet.
        """
        if self._connected is None:
            raise RuntimeError("The worker has not started yet: wait in after_server_start or later")
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError:
            raise NatsUnavailable(_DISCONNECTED) from None
        if self._is_stopping:
            raise NatsUnavailable(_STOPPING)

    async def room(self) -> None:
        """Wait until NATS accepts data again, if it is connected."""
        # nats-py would wait for its buffer too. But that wait ignores cancellation and the end of the connection.
        while (outlet := self._link.connection) is not None and outlet.unsent_bytes > _MAX_UNSENT_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    def send(self, subject: str, payload: bytes, headers: bytes = b"") -> None:
        """Publish a message, which is handed to a live connection when this method returns.

        Args:
            subject: The real subject, valid and without wildcards.
            payload: The payload.
            headers: The header block; empty for none.

        Raises:
            NatsUnavailable: NATS is disconnected, or accepts no data.
            SizeLimitExceeded: NATS accepts no message of this size.
            NatsRefused: NATS accepts no subject of this length.
        """
        self._outlet(len(subject), headers, payload).send_message(subject.encode(), payload, headers)

    def store(self, subject: str, payload: bytes, headers: bytes = b"") -> asyncio.Future[Acknowledgement]:
        """Publish a message as `send` does; return JetStream's acknowledgement, to be awaited.

        The future may be cancelled. It raises PublishUnstored, PublishUnknown or NatsRefused.

        Args:
            subject: The real subject, valid and without wildcards.
            payload: The payload.
            headers: The header block; empty for none.

        Raises:
            NatsUnavailable: NATS is disconnected, or accepts no data.
            SizeLimitExceeded: NATS accepts no message of this size.
            NatsRefused: NATS accepts no subject of this length.
        """
        return self._answers.ask(
            self._outlet(len(subject) + self._answers.reply_length, headers, payload),
            subject,
            payload,
            headers,
            expected=_ACKNOWLEDGED,
            seconds=ACKNOWLEDGE_SECONDS,
        )

    def request(self, subject: str, payload: bytes, headers: bytes = b"", *, seconds: float) -> asyncio.Future[Answer]:
        """Send a request; return its answer, to be awaited.

        The future may be cancelled. It raises NoResponders, RequestTimedOut, RequestFailed,
        NatsRefused or NatsUnavailable.

        Args:
            subject: The real subject, valid and without wildcards.
            payload: The payload.
            headers: The header block; empty for none.
            seconds: The time for the answer.

        Raises:
            NatsUnavailable: NATS is disconnected, or accepts no data.
            SizeLimitExceeded: NATS accepts no message of this size.
            NatsRefused: NATS accepts no subject of this length.
        """
        return self._answers.ask(
            self._outlet(len(subject) + self._answers.reply_length, headers, payload),
            subject,
            payload,
            headers,
            expected=_ANSWERED,
            seconds=seconds,
        )

    def _outlet(self, subject_length: int, headers: bytes, payload: bytes) -> Outlet:
        """Return the live connection, if it accepts a message of these sizes."""
        outlet = self._link.connection
        if outlet is None:
            raise NatsUnavailable(_DISCONNECTED)
        if outlet.unsent_bytes > _MAX_UNSENT_BYTES:
            raise NatsUnavailable("NATS accepts no data")
        # In both cases NATS would end the connection, and all clients would get a gap.
        if subject_length >= outlet.refused_subject_length:
            raise NatsRefused("NATS accepts no subject of this length")
        if len(headers) + len(payload) > outlet.publish_limit:
            raise SizeLimitExceeded(f"NATS accepts messages of at most {outlet.publish_limit} bytes with headers")
        return outlet


_ACKNOWLEDGED = Expected(
    read_acknowledgement,
    late=lambda seconds: PublishUnknown(f"Not acknowledged within {seconds:g} s; it may have been stored"),
    lost=lambda reason: PublishUnknown(f"Not acknowledged, because {reason}; it may have been stored"),
)
_ANSWERED = Expected(
    read_answer,
    late=lambda seconds: RequestTimedOut(f"No answer within {seconds:g} s"),
    lost=lambda reason: NatsUnavailable(f"No answer, because {reason}"),
)
