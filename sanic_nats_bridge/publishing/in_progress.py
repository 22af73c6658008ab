"""The limit on publishes, or requests, whose answer is awaited."""

from collections import Counter
from collections.abc import Callable

__all__ = ["InProgress"]


class InProgress:
    """The number of publishes, or requests, whose answer is awaited: for each session, each client and the worker.

    A client has at most as many as it leaves free. So one with many sessions takes half of the worker's, and there is
    always one for the next client.

    Args:
        max_of_session: The largest number for one session, or for one client without a session.
        max_of_worker: The largest number for the worker.
        session_error: Creates the error for a session that has as many.
        error: Creates the error if too few are free.
    """

    def __init__(
        self,
        max_of_session: int,
        max_of_worker: int,
        *,
        session_error: Callable[[], Exception],
        error: Callable[[], Exception],
    ) -> None:
        self._max_of_session = max_of_session
        self._max_of_worker = max_of_worker
        self._session_error = session_error
        self._error = error
        self._by_session: Counter[str] = Counter()
        self._by_client: Counter[str] = Counter()
        self._all = 0

    def __len__(self) -> int:
        return self._all

    def acquire(self, session: str, client: str) -> None:
        """Count one until `release`.

        Args:
            session: The session, or the client if it has none.
            client: The client.

        Raises:
            Exception: The error that was created, because there are too many.
        """
        if self._by_session[session] >= self._max_of_session:
            raise self._session_error()
        if self._by_client[client] >= self._max_of_worker - self._all:
            raise self._error()
        self._by_session[session] += 1
        self._by_client[client] += 1
        self._all += 1

    def release(self, session: str, client: str) -> None:
        """Count one less."""
        self._all -= 1
        for counter, key in ((self._by_session, session), (self._by_client, client)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
