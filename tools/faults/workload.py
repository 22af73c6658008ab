"""Whatever harm is done: clients that follow, publishers, and what is seen of them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from .checker import Publication
from .clients import Client
from .publisher import Publisher

__all__ = ["NotDoneError", "Scene", "noting", "until"]

_NOTICES: Final = ("disconnected", "gap", "unsubscribed", "nats.refused")
_PATIENCE_SECONDS: Final = 30.0
_SMALL_SECONDS: Final = 0.3


class NotDoneError(RuntimeError):
    """A fault was not done as it should, and nothing is known of what would have come of it."""


class Scene:
    """Clients and publishers.

    Attributes:
        audience: Clients that have nothing to do with the fault.
        others: Those that have, and those that come and go.
        noticed: Seconds from each strike until the first client was told of it, where one was.
        back: Seconds from each healing until every client of the audience had a message again.
    """

    def __init__(self, *, small: bool) -> None:
        self.small: Final = small
        self.audience: list[Client] = []
        self.others: list[Client] = []
        self.publishers: list[Publisher] = []
        self.noticed: list[float] = []
        self.back: list[float] = []

    @property
    def clients(self) -> list[Client]:
        """All of them."""
        return self.audience + self.others

    @property
    def publications(self) -> list[Publication]:
        """All that was published."""
        return [publication for publisher in self.publishers for publication in publisher.publications]

    def publish_by(self, publisher: Publisher) -> None:
        """Have one more publisher."""
        self.publishers.append(publisher)
        publisher.start()

    @contextlib.asynccontextmanager
    async def fault(self) -> AsyncIterator[None]:
        """The fault is there while this context lasts; returns when every client gets messages again."""
        struck = time.monotonic()
        yield
        healed = time.monotonic()
        self.back.append(await self.all_get_messages(healed) - healed)
        seen = [at for client in self.clients if (at := client.first(struck, *_NOTICES)) is not None]
        if seen:
            self.noticed.append(min(seen) - struck)

    async def hold(self, seconds: float) -> None:
        """Let the fault stand for so long."""
        await asyncio.sleep(min(seconds, _SMALL_SECONDS) if self.small else seconds)

    async def all_get_messages(self, since: float) -> float:
        """Wait until each client of the audience has a message that was published after the moment; when the last had.

        Raises:
            TimeoutError: Some have not.
        """
        moments: dict[Client, float] = {}

        def all_have() -> bool:
            keys = [each.key for publisher in self.publishers for each in publisher.published_since(since)]
            for client in self.audience:
                if client not in moments and (got := [client.at[key] for key in keys if key in client.at]):
                    moments[client] = min(got)
            return len(moments) == len(self.audience)

        await until(all_have, "every client gets messages")
        return max(moments.values())

    async def finish(self) -> None:
        """Publish a last message on each subject, and wait until it has come to all, or too long."""
        await asyncio.gather(*(client.settle() for client in self.clients))
        await asyncio.gather(*(publisher.finish() for publisher in self.publishers))
        last = [publication for publisher in self.publishers for publication in publisher.closing]
        for client in self.clients:
            client.expect(last)
        with contextlib.suppress(TimeoutError):
            await until(lambda: all(client.has_all for client in self.clients if client.connected), "the last messages")
        for client in self.clients:
            client.log.to_the_end = client.connected

    def require(self, fact: bool, what: str) -> None:
        """Go on only if this is so.

        Raises:
            NotDoneError: It is not: the fault was not done as it should.
        """
        if not fact:
            raise NotDoneError(what)


@contextlib.contextmanager
def noting(failures: list[str]) -> Iterator[None]:
    """Write down what goes wrong, as the last thing that was done."""
    try:
        yield
    except (TimeoutError, OSError, NotDoneError) as error:
        failures.append(f"{type(error).__name__}: {error}")


async def until(fact: Callable[[], bool], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until the fact holds.

    Raises:
        TimeoutError: It does not.
    """
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(0.01)
