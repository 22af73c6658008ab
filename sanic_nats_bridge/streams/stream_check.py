"""Checks of whether one stream can serve clients, with a log line for each change of that."""

import asyncio
import math
from collections.abc import Sequence

from ..log_limits import limited_logger
from ..protocol import subjects
from .interfaces import FeedLink
from .jetstream import JetStream, JetStreamUnavailable, PermissionMissing, StreamInfo, StreamMissing
from .requirements import (
    Permission,
    StreamUnusable,
    advice_for,
    denied_permissions,
    denied_subscription,
    missing_stream,
    problem_of,
)

__all__ = ["GONE_SECONDS", "INFO_SECONDS", "StreamCheck"]

logger = limited_logger()

INFO_SECONDS = 30.0
"""Seconds between two looks at a stream."""
GONE_SECONDS = 30.0
"""Seconds after which a stream that could be read before counts as unavailable."""
_RETRYING = "retrying"


class StreamCheck:
    """The state of one stream for operators: what it is like, and what the NATS user may do with it.

    Args:
        name: The name of the stream.
        jetstream: The JetStream API.
        link: The connection.
        prefix: The prefix of the subjects on which the consumers of this worker deliver.
    """

    def __init__(self, name: str, jetstream: JetStream, link: FeedLink, prefix: str) -> None:
        self.is_unavailable = False
        """True if the stream can't serve clients until the operator has changed something."""
        self._name = name
        self._jetstream = jetstream
        self._looked_at = -math.inf
        self._tried_on: object | None = None
        """The connection on which the permissions were tried last."""
        self.denied: tuple[Permission, ...] = ()
        """The permissions to publish that NATS has denied."""
        self._probe = _SubscriptionProbe(link, f"{prefix}.probe")
        # Without the tokens that differ for each worker.
        self._shared_prefix = prefix.rsplit(".", 2)[0]
        self._is_looking = False
        self._unusable_since = math.inf
        self._problem = ""
        """The problem that was logged last; empty if the stream can be read."""
        self._advice: Sequence[str] = ()

    @property
    def is_denied(self) -> bool:
        """True if the NATS user lacks a permission."""
        return bool(self.denied) or self._probe.is_refused or self._jetstream.is_refused

    @property
    def is_due(self) -> bool:
        """True if the last look was long ago."""
        return asyncio.get_running_loop().time() - self._looked_at > INFO_SECONDS

    async def look(self, connection: object) -> StreamInfo:
        """Return the state of the stream. Try the permissions for it, if that wasn't done on this connection.

        Raises:
            StreamUnusable: The stream can't serve clients.
            JetStreamError: The stream can't be read now.
        """
        self._is_looking = True
        try:
            return await self._look(connection)
        finally:
            self._is_looking = False

    async def _look(self, connection: object) -> StreamInfo:
        jetstream = self._jetstream
        try:
            if self._tried_on is not connection or self.is_denied:
                jetstream.subscribe_again()
                self._probe.begin()
                await jetstream.try_permissions(self._name)
            info = await jetstream.stream_info(self._name)
        except JetStreamUnavailable:
            if jetstream.is_refused:
                raise denied_subscription(self._shared_prefix) from None
            raise
        except PermissionMissing:
            self.denied = jetstream.denied_permissions(self._name, allow_direct=True)
            problem = denied_permissions(self.denied)
            assert problem is not None
            raise problem from None
        except StreamMissing:
            raise missing_stream() from None
        finally:
            self._probe.end()
        if self._probe.is_refused:
            raise denied_subscription(self._shared_prefix)
        self.denied = jetstream.denied_permissions(self._name, allow_direct=info.allow_direct)
        self._tried_on = connection
        self._looked_at = asyncio.get_running_loop().time()
        problem = problem_of(info, self.denied)
        if problem is not None:
            raise problem
        return info

    def try_again(self) -> None:
        """Try the permissions with the next look, because NATS has refused a subscription."""
        self._tried_on = None

    def note_denied(self, subject: str) -> bool:
        """Return whether a refused request concerns the stream, and no permission that is known to be missing."""
        if self._is_looking or f".{self._name}." not in f"{subject}.":
            return False
        if any(subjects.covers(each.allow, subject) for each in self.denied):
            return False
        self._tried_on = None
        return True

    def note_problem(self, error: Exception, *, was_readable: bool) -> None:
        """Note that the stream can't be read, and log the reason if it is new.

        Reasons that may go away by themselves count as one. A stream that could be read before may be back at once.

        Args:
            error: The reason.
            was_readable: Whether the stream could be read before.
        """
        if isinstance(error, StreamUnusable):
            now = asyncio.get_running_loop().time()
            self._unusable_since = min(self._unusable_since, now)
            self.is_unavailable = self.is_unavailable or not was_readable or now - self._unusable_since >= GONE_SECONDS
        if self.is_unavailable and isinstance(error, StreamUnusable):
            if self._problem != str(error):
                self._problem = str(error)
                logger.warning("Clients get no history from stream '%s': %s", self._name, error)
        elif not self._problem:
            self._problem = _RETRYING
            logger.warning("Cannot read stream '%s': %s; retrying", self._name, error)

    def note_success(self, info: StreamInfo) -> None:
        """Note that the stream can be read, and log that if it couldn't before, and what the operator can improve."""
        self.is_unavailable = False
        self._unusable_since = math.inf
        if self._problem:
            self._problem = ""
            logger.info("Stream '%s' can be read again", self._name)
        advice = advice_for(info, self.denied)
        for each in advice:
            if each not in self._advice:
                logger.info("Stream '%s' is served, but %s", self._name, each)
        self._advice = advice


class _SubscriptionProbe:
    """A subscription that shows whether NATS lets the bridge receive messages.

    Args:
        link: The connection.
        subject: A subject on which nothing is published.
    """

    def __init__(self, link: FeedLink, subject: str) -> None:
        self.is_refused = False
        """True if NATS has refused it. This is known with the answer to the next request."""
        self._link = link
        self._subject = subject
        self._client: object | None = None
        self._sid: int | None = None

    def begin(self) -> None:
        """Subscribe."""
        self.is_refused = False
        self._client, self._sid = self._link.client, self._link.subscribe_control(self._subject, self)

    def end(self) -> None:
        """Unsubscribe, if it is subscribed."""
        sid, self._sid = self._sid, None
        # Another connection uses the same numbers again.
        if sid is not None and not self.is_refused and self._link.client is self._client:
            self._link.unsubscribe(sid)

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Do nothing: there are no messages on its subject."""

    def confirmed(self) -> None:
        """Do nothing: a refusal comes before the answer to the next request."""

    def refused(self) -> None:
        """Note that NATS has refused the subscription."""
        self.is_refused = True
