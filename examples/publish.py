"""One message published from the command line, for the other examples.

Run: python examples/publish.py hello.world Hi
Try: the same with any subject, and JSON such as '{"price": 3}' as payload
"""

import asyncio
import os
import sys

import nats


async def main(subject: str, payload: str) -> None:
    """Publish one message and wait until the NATS server has it."""
    client = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    await client.publish(subject, payload.encode())
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
