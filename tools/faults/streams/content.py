"""The content of a stream, as its leader has it."""

import json

from nats.aio.client import Client

from .logs import Stored
from .profiles import STREAMS

__all__ = ["read_stream"]


async def read_stream(client: Client, name: str, seconds: float) -> list[Stored]:
    """Return all messages of a stream.

    Raises:
        nats.errors.Error: NATS hasn't answered within this time, or has refused.
        TimeoutError: The same.
    """
    stream = client.jetstream(timeout=seconds)
    subscription = await stream.subscribe(STREAMS[name], stream=name, ordered_consumer=True)
    info = await stream.stream_info(name)
    stored: list[Stored] = []
    while len(stored) < info.state.messages:
        message = await subscription.next_msg(timeout=seconds)
        stored.append(Stored(message.metadata.sequence.stream, message.subject, json.loads(message.data)["n"]))
    await subscription.unsubscribe()
    return stored
