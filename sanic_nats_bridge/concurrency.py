"""The limit on what is in progress at once."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

__all__ = ["ConcurrencyLimit"]


class ConcurrencyLimit:
    """A limit on what is in progress for one client, and for all of them.

    Args:
        max_of_client: The largest number for one client.
        max_of_all: The largest number for all clients.
        client_error: Creates the error for a client that has as many.
        error: Creates the error if there are as many for all clients.
    """

    def __init__(
        self,
        max_of_client: int,
        max_of_all: int,
        *,
        client_error: Callable[[], Exception],
        error: Callable[[], Exception],
    ) -> None:
        self._max_of_client = max_of_client
        self._max_of_all = max_of_all
        self._client_error = client_error
        self._error = error
        self._by_client: Counter[str] = Counter()
        self._all = 0

    def __len__(self) -> int:
        return self._all

    @contextlib.contextmanager
    def counting(self, client: str) -> Iterator[None]:
        """Count one for a client until the end of the block.

        Raises:
            Exception: The error that was created, because there are too many.
        """
        self.acquire(client)
        try:
            yield
        finally:
            self.release(client)

    def acquire(self, client: str) -> None:
        """Count one for a client until `release`.

        Raises:
            Exception: The error that was created, because there are too many.
        """
        if self._by_client[client] >= self._max_of_client:
            raise self._client_error()
        if self._all >= self._max_of_all:
            raise self._error()
        self._by_client[client] += 1
        self._all += 1

    def release(self, client: str) -> None:
        """Count one less for a client."""
        self._all -= 1
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]
