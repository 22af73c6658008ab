"""Signatures of the messages between the workers, with the keys of the setting ``control_key``.

A signed message is its payload, then one signature for each key of the sender: the first 16 bytes of the HMAC-SHA256
of the control subject, the reply subject and the payload. RFC 2104, section 5, allows the truncation. A receiver
accepts the message if one of its own keys fits one of the signatures. So workers with the old key, with both and with
the new one understand each other while the key is replaced.

Each message names its sender, a time and a number in one of its subjects. A message with a time too far from the
receiver's is stale, and a number that was used before is a replay.
"""

import hmac
import itertools
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

from ..log_limits import limited_logger
from ..protocol.session_ids import WORKER_ID_GRAMMAR

__all__ = ["CLOCK_SECONDS", "Rejection", "Signatures", "fingerprints"]

logger = limited_logger()

CLOCK_SECONDS = 30.0
"""The largest difference between the time of a message and that of its receiver."""

Rejection: TypeAlias = Literal["signature", "stale", "replay"]
"""The reason for which a message was rejected."""

_DIGEST = "sha256"
_SIZE = 16
_MAX_KEYS = 2
_LABEL = b"sanic-nats-bridge control 1\n"
_FINGERPRINT = b"sanic-nats-bridge fingerprint"
_REMEMBERED_NUMBERS = 1024
"""Numbers of one sender below its highest that are remembered; older ones are taken for replays."""
_MAX_SENDERS = 10_000
_STAMP = re.compile(rb"(?:^|\.)(%b)\.(\d{1,12})-(\d{1,18})$" % WORKER_ID_GRAMMAR.encode())


class _RejectedMessageError(ValueError):
    """A message that no worker of this app has sent just now."""

    def __init__(self, reason: Rejection, age: float = 0) -> None:
        super().__init__(reason)
        self.reason: Rejection = reason
        self.age = age
        """The time of the receiver less that of the message, in seconds."""


def fingerprints(keys: Sequence[str]) -> list[str]:
    """Return what two workers may compare to know whether they share a key."""
    return [hmac.digest(key.encode(), _FINGERPRINT, _DIGEST)[:8].hex() for key in keys]


class Signatures:
    """The signatures of one worker's messages, and the check of those of the others.

    Without keys, messages are neither signed nor checked.

    Args:
        keys: The keys, two at most.
        dropped: Counts the messages that were rejected, by reason.
        clock: Returns Unix seconds.
        stall: Returns the seconds for which this worker has not read its messages lately.
    """

    def __init__(
        self,
        keys: Sequence[str],
        dropped: Counter[str],
        *,
        clock: Callable[[], float] | None = None,
        stall: Callable[[], float] = float,
    ) -> None:
        self._keys = [key.encode() for key in keys]
        self._dropped = dropped
        self._clock = clock or _unix_time
        self._stall = stall
        self._numbers = itertools.count()
        self._senders: OrderedDict[bytes, _Numbers] = OrderedDict()
        """The senders, in the order of their last messages."""

    @property
    def size(self) -> int:
        """The number of bytes that `sign` adds."""
        return _SIZE * len(self._keys)

    def stamp(self) -> str:
        """Return a token of a subject with the time and a number that no earlier message of this worker has."""
        return f"{int(self._clock())}-{next(self._numbers)}"

    def sign(self, subject: str, reply: str, payload: bytes) -> bytes:
        """Return the signed message for a payload."""
        if not self._keys:
            return payload
        text = _text(subject.encode(), reply.encode(), payload)
        return payload + b"".join(_signature(key, text) for key in self._keys)

    def accept(self, subject: bytes, reply: bytes, message: bytes, *, fresh: bool = True) -> bytes | None:
        """Return the payload of a message, or ``None`` if it must be dropped, which is counted and logged.

        Args:
            subject: The subject of the message.
            reply: Its reply subject; may be empty.
            message: The payload with its signatures.
            fresh: Whether the message must be recent, and not received before.
        """
        try:
            payload = self._verified(subject, reply, message)
            if fresh and self._keys:
                self._check_stamp(reply or subject)
        except _RejectedMessageError as error:
            self._dropped[error.reason] += 1
            self._log(error)
            return None
        return payload

    def _verified(self, subject: bytes, reply: bytes, message: bytes) -> bytes:
        if not self._keys:
            return message
        for payload, signatures in _divided(message):
            text = _text(subject, reply, payload)
            expected = [_signature(key, text) for key in self._keys]
            # Every pair is compared, so that the time doesn't depend on which of them fits.
            fits = [hmac.compare_digest(one, other) for one in signatures for other in expected]
            if any(fits):
                return payload
        raise _RejectedMessageError("signature")

    def _check_stamp(self, subject: bytes) -> None:
        found = _STAMP.search(subject)
        if found is None:
            raise _RejectedMessageError("signature")
        sender, sent, number = found[1], int(found[2]), int(found[3])
        age = self._clock() - sent
        # A worker whose event loop was blocked reads messages late, and a revocation must not be lost for that.
        # The sent time is in whole seconds.
        if not -CLOCK_SECONDS <= age <= CLOCK_SECONDS + 1 + self._stall():
            raise _RejectedMessageError("stale", age)
        numbers = self._senders.setdefault(sender, _Numbers())
        self._senders.move_to_end(sender)
        if len(self._senders) > _MAX_SENDERS:
            self._senders.popitem(last=False)
        if not numbers.add(number):
            raise _RejectedMessageError("replay")

    def _log(self, error: _RejectedMessageError) -> None:
        if error.reason == "signature":
            logger.warning(
                "Dropped a message between the workers that has no valid signature. Another program publishes on "
                "their subjects, or another worker has another 'control_key'"
            )
        elif error.reason == "stale":
            logger.warning(
                "Dropped a message of another worker that was sent %d s ago by its clock. Synchronize the clocks of "
                "all machines",
                error.age,
            )
        else:
            logger.warning(
                "Dropped a message of another worker that was received before. Another program repeats its messages"
            )


class _Numbers:
    """The numbers of the messages of one sender, in memory of a constant size."""

    __slots__ = ("_bits", "_highest")

    def __init__(self) -> None:
        self._highest = -1
        self._bits = 0
        """The highest number and those below it, as the bits of an integer from its lowest."""

    def add(self, number: int) -> bool:
        """Remember a number; return False if it was there, or is too far below the highest to know."""
        below = self._highest - number
        if below < 0:
            self._bits = ((self._bits << min(-below, _REMEMBERED_NUMBERS)) | 1) & ((1 << _REMEMBERED_NUMBERS) - 1)
            self._highest = number
            return True
        if below >= _REMEMBERED_NUMBERS or self._bits >> below & 1:
            return False
        self._bits |= 1 << below
        return True


def _unix_time() -> float:
    return time.time()


def _divided(message: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield the payload and the signatures, for each number of keys that the sender may have."""
    for count in range(1, _MAX_KEYS + 1):
        end = len(message) - count * _SIZE
        if end >= 0:
            yield message[:end], [message[start : start + _SIZE] for start in range(end, len(message), _SIZE)]


def _text(subject: bytes, reply: bytes, payload: bytes) -> bytes:
    # No subject has a line break.
    return b"%b%b\n%b\n%b" % (_LABEL, subject, reply, payload)


def _signature(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, _DIGEST)[:_SIZE]
