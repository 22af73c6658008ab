"""Responses that leave no unread body of their request on a connection of Sanic's own server.

Sanic discards such a body itself, after the response. But it logs an error for it, unless the response is one too.

Private parts of Sanic that are used: ``keep_alive``, ``protocol``, ``request_body``, ``request_max_size`` and ``stage``
of its HTTP/1 connection, and ``request_max_size`` of its protocol.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, AnyStr

from sanic import HTTPResponse
from sanic.exceptions import SanicException
from sanic.http import Http
from sanic.http.constants import Stage

__all__ = ["BodyDiscardingResponse", "discarding_body"]


class BodyDiscardingResponse(HTTPResponse):
    """A response that doesn't wait for the body of its request, which is discarded afterwards."""

    __slots__ = ()

    async def send(self, data: AnyStr | None = None, end_stream: bool | None = None) -> None:
        """Send a part of the response. After the last part, read the rest of the request."""
        connection = self.stream
        await super().send(data, end_stream)
        if isinstance(connection, Http) and connection.stage is Stage.IDLE:
            try:
                await _read_rest(connection)
            except asyncio.CancelledError:  # Sanic limits the time
                _give_up(connection)
                raise


@contextlib.asynccontextmanager
async def discarding_body(connection: Any) -> AsyncIterator[None]:
    """Read the body of the request while a response is streamed in this context.

    Otherwise Sanic would stop reading when its buffer is full, and not notice that the client has disconnected.
    """
    if not connection.request_body:
        yield
        return
    reading = asyncio.create_task(_read_rest(connection))
    try:
        yield
    except BaseException:
        _give_up(connection)
        raise
    finally:
        reading.cancel()


async def _read_rest(connection: Any) -> None:
    # Sanic has made it infinite for a handler that reads the body itself.
    connection.request_max_size = min(connection.request_max_size, connection.protocol.request_max_size)
    try:
        async for _ in connection:
            pass
    except SanicException:
        # The body is malformed or too large.
        _give_up(connection)


def _give_up(connection: Any) -> None:
    """Let the connection end after the response, because the next request cannot be found on it."""
    connection.keep_alive = False
    connection.request_body = None
