"""Responses that leave no unread body of their request on a connection of Sanic's own server.

Sanic discards such a body itself, after the response. But it logs an error for it, unless the response is one too.

Private parts of Sanic that are used: ``keep_alive``, ``protocol``, ``recv_buffer``, ``request_body``,
``request_max_size`` and ``stage`` of its HTTP/1 connection, and ``receive_more`` and ``request_max_size`` of its
protocol.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, AnyStr

from sanic import HTTPResponse
from sanic.exceptions import SanicException
from sanic.http import Http
from sanic.http.constants import Stage

from .input_limits import PartLimit

__all__ = ["BodyDiscardingResponse", "discarding_body", "end_connection"]

_MAX_SMALL_PARTS = 256
_LINGER_SECONDS = 1.0
"""Seconds for which input is dropped before a connection is closed, because unread input would cause a TCP reset.

The client would then not receive the response (RFC 9112, section 9.6).
"""


class BodyDiscardingResponse(HTTPResponse):
    """A response that doesn't wait for the body of its request, which is discarded afterwards."""

    __slots__ = ()

    async def send(self, data: AnyStr | None = None, end_stream: bool | None = None) -> None:
        """Send a part of the response. After the last part, read the rest of the request."""
        connection = self.stream
        await super().send(data, end_stream)
        if isinstance(connection, Http) and connection.stage is Stage.IDLE:
            try:
                if not await _read_rest(connection):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LINGER_SECONDS):
                            await _drop_input(connection)
                elif connection.recv_buffer:
                    # The next request is answered in another turn of the event loop, because a client may send many.
                    await asyncio.sleep(0)
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
    reading = asyncio.create_task(_read_all(connection))
    try:
        yield
    except BaseException:
        _give_up(connection)
        raise
    finally:
        reading.cancel()


def end_connection(connection: Any) -> None:
    """End the connection of a request after its response, on Sanic's own server."""
    if isinstance(connection, Http):
        connection.keep_alive = False


async def _read_all(connection: Any) -> None:
    """Read the body, and drop what follows if the body cannot be read to its end."""
    if not await _read_rest(connection):
        await _drop_input(connection)


async def _read_rest(connection: Any) -> bool:
    """Read the body to its end. Return False if it has too many small parts.

    It is read in slices, one per turn of the event loop.
    """
    # Sanic has made it infinite for a handler that reads the body itself.
    connection.request_max_size = min(connection.request_max_size, connection.protocol.request_max_size)
    parts = PartLimit(_MAX_SMALL_PARTS)
    try:
        async for part in connection:
            if not parts.add(len(part)):
                _give_up(connection)
                return False
            if parts.turn_ends:
                await asyncio.sleep(0)
    except SanicException:
        # The body is malformed or too large.
        _give_up(connection)
    return True


async def _drop_input(connection: Any) -> None:
    """Drop all input, without parsing it."""
    while True:
        connection.recv_buffer.clear()
        await connection.protocol.receive_more()


def _give_up(connection: Any) -> None:
    """Let the connection end after the response, because the next request cannot be found on it."""
    connection.keep_alive = False
    connection.request_body = None
