"""The streams of the app's own nats-server, so that the page shows history without any set-up."""

import nats
from nats.js.api import KeyValueConfig, StreamConfig

__all__ = ["BUCKET_SUBJECTS", "HISTORY", "STREAMS", "create_streams"]

_STREAM = "EXAMPLE"
_BUCKET = "prefs"
_MAX_MESSAGES = 10_000
_MAX_AGE = 3600.0  # seconds

BUCKET_SUBJECTS = f"$KV.{_BUCKET}.>"
"""The subjects of the bucket's keys. A wildcard at the beginning of a pattern doesn't match them."""
STREAMS: dict[str, list[str] | None] = {_STREAM: None, f"KV_{_BUCKET}": [BUCKET_SUBJECTS]}
"""The setting ``streams`` of the bridge."""
HISTORY = [">", BUCKET_SUBJECTS]
"""The setting ``history`` of the bridge."""


async def create_streams(url: str) -> None:
    """Create a stream for the subjects of the publisher, and a key-value bucket."""
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        stream = StreamConfig(name=_STREAM, subjects=["test.>", "orders.>"], allow_direct=True)
        await jetstream.add_stream(stream, max_msgs=_MAX_MESSAGES, max_age=_MAX_AGE)
        await jetstream.create_key_value(KeyValueConfig(bucket=_BUCKET, direct=True))
    finally:
        await client.close()
