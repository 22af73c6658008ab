"""The workload during every fault: subscribed clients and publishers, and observations of them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

from .clients import Receiver
from .gap_analysis import Publication
from .publisher import Publisher

__all__ = ["SMALL_REORDERING_SECONDS", "InjectionError", "Workload", "recording", "until"]

_NOTICES = ("disconnected", "gap", "unsubscribed", "nats.refused")
_TIMEOUT_SECONDS = 60.0
_SMALL_SECONDS = 0.3
SMALL_REORDERING_SECONDS = 10.0
"""For the checker's `Log`, in a small run on a cluster, whose servers may be slow."""


class InjectionError(RuntimeError):
    """A fault that could not be injected as described, so that its outcome is unknown."""


class Workload:
    """Clients and publishers.

    Args:
        small: Keep faults very short, and don't check times.

    Attributes:
        bystanders: Clients that don't take part in the fault.
        others: Clients that take part in it, and those that connect or disconnect meanwhile.
        noticed: Seconds from each start of a fault until the first client was notified, if any was.
        first_message_after: Seconds from each end of a fault until every bystander had received a new message.
    """

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self._fault_started = 0.0
        self.bystanders: list[Receiver] = []
        self.others: list[Receiver] = []
        self.publishers: list[Publisher] = []
        self.noticed: list[float] = []
        self.first_message_after: list[float] = []

    @property
    def clients(self) -> list[Receiver]:
        """All clients."""
        return self.bystanders + self.others

    @property
    def publications(self) -> list[Publication]:
        """All published messages."""
        return [publication for publisher in self.publishers for publication in publisher.publications]

    def add_publisher(self, publisher: Publisher) -> None:
        """Add a publisher, and start it."""
        self.publishers.append(publisher)
        publisher.start()

    @contextlib.asynccontextmanager
    async def fault(self) -> AsyncIterator[None]:
        """Measure a fault that lasts as long as the context, and wait until every bystander receives messages again."""
        started = self._fault_started = time.monotonic()
        yield
        ended = time.monotonic()
        self.first_message_after.append(await self.wait_for_messages(ended) - ended)
        notices = self._notices()
        if notices:
            self.noticed.append(min(notices) - started)

    async def hold(self, seconds: float) -> None:
        """Let the fault last for this time, or in a small run until a client has been notified."""
        if self.small:
            await until(lambda: bool(self._notices()), "a client is notified")
        else:
            await asyncio.sleep(seconds)

    def _notices(self) -> list[float]:
        frames = (client.first_frame_time(self._fault_started, *_NOTICES) for client in self.clients)
        return [at for at in frames if at is not None]

    async def sleep(self, seconds: float) -> None:
        """Sleep for this time, or for a shorter one in a small run."""
        await asyncio.sleep(min(seconds, _SMALL_SECONDS) if self.small else seconds)

    async def wait_for_messages(self, since: float) -> float:
        """Wait until each bystander has received a message that was published at or after ``since``.

        Returns:
            The time at which the last bystander received its first one.

        Raises:
            TimeoutError: A bystander received none.
        """
        moments: dict[Receiver, float] = {}

        def all_received() -> bool:
            keys = [each.key for publisher in self.publishers for each in publisher.published_since(since)]
            for client in self.bystanders:
                arrivals = client.arrival_times
                if client not in moments and (times := [arrivals[key] for key in keys if key in arrivals]):
                    moments[client] = min(times)
            return len(moments) == len(self.bystanders)

        await until(all_received, "every client receives messages")
        return max(moments.values())

    async def finish(self, propagated: Callable[[], bool]) -> None:
        """Publish a last message on each subject, and wait until every client has received it, or for a minute.

        Args:
            propagated: Whether all NATS servers know of all subscriptions.
        """
        await asyncio.gather(*(client.settle() for client in self.clients))
        await until(propagated, "the cluster knows of all subscriptions")
        await asyncio.gather(*(publisher.finish() for publisher in self.publishers))
        last = [publication for publisher in self.publishers for publication in publisher.last_publications]
        for client in self.clients:
            client.expect(last)
        with contextlib.suppress(TimeoutError):
            await until(
                lambda: all(client.has_last_messages for client in self.clients if client.connected),
                "every client receives the last messages",
            )
        for client in self.clients:
            client.log.complete = client.connected

    def require(self, condition: bool, failure: str) -> None:
        """Check a condition without which the fault was not injected.

        Raises:
            InjectionError: The condition is false.
        """
        if not condition:
            raise InjectionError(failure)


@contextlib.contextmanager
def recording(failures: list[str]) -> Iterator[None]:
    """Add an error that ends the context to the failures."""
    try:
        yield
    except (TimeoutError, OSError, InjectionError) as error:
        failures.append(f"{type(error).__name__}: {error}")


async def until(condition: Callable[[], bool], description: str, seconds: float = _TIMEOUT_SECONDS) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: It was not true within this time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {description}")
        await asyncio.sleep(0.01)
