import asyncio
from types import SimpleNamespace
from typing import Any

from example_app.echo import ECHO_SUBJECT, answer, echo_forever


async def test_each_connection_of_the_bridge_is_served_once() -> None:
    served: list[tuple[str, str]] = []

    def connection(name: str) -> Any:
        async def subscribe(subject: str, queue: str, cb: object) -> None:
            served.append((name, subject))

        return SimpleNamespace(subscribe=subscribe)

    bridge: Any = SimpleNamespace(client=None)
    echoing = asyncio.create_task(echo_forever(bridge))
    await asyncio.sleep(1.5)
    for name in ("first", "second"):
        bridge.client = connection(name)
        await asyncio.sleep(3)
        bridge.client = None
        await asyncio.sleep(3)
    echoing.cancel()
    assert served == [("first", ECHO_SUBJECT), ("second", ECHO_SUBJECT)]


async def test_request_is_answered_with_its_data_or_an_error() -> None:
    answers: list[tuple[str, bytes, Any]] = []

    async def publish(subject: str, payload: bytes = b"", headers: Any = None) -> None:
        answers.append((subject, payload, headers))

    client: Any = SimpleNamespace(publish=publish)
    for data in (b"1", b""):
        request: Any = SimpleNamespace(reply="reply", data=data)
        await answer(client, request)
    assert answers[0] == ("reply", b"1", None)
    assert answers[1][:2] == ("reply", b"")
    assert answers[1][2]["Nats-Service-Error-Code"] == "400"
