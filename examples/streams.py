"""The streams and the bucket of the other examples, made from the command line.

Run: python examples/streams.py
Try: the same again; what exists stays as it is
"""

import asyncio
import os

import nats
from nats.js.api import KeyValueConfig, StreamConfig


async def main() -> None:
    """Make each stream, unless it exists."""
    client = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    jetstream = client.jetstream()
    # Only streams that keep messages after they were read have history: `retention` is "limits", the default.
    for name, subjects in (("STOCK", ["stock.*"]), ("LOG", ["log.*"]), ("ROOMS", ["rooms.*"])):
        await jetstream.add_stream(StreamConfig(name, subjects=subjects, allow_direct=True, max_age=7 * 24 * 3600))
    await jetstream.create_key_value(KeyValueConfig("settings", direct=True))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
