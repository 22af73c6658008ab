from .support import Bridge, Publisher


async def test_a_message_reaches_both_transports(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("orders")
    async with bridge.websocket() as websocket, bridge.events(subject) as events:
        await websocket.follow(subject)
        await publisher.send(subject, b"1", b'{"a": 2}')
        assert await websocket.data(2) == [1, {"a": 2}]
        assert await events.data(2) == [1, {"a": 2}]
