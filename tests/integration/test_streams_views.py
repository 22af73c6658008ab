"""Many sessions with different permissions, which read the past of one stream and follow it."""

import contextlib
from typing import Any

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import EventClient, WebSocketClient, running
from tests.support.streams import Stream, jetstream_fixture

SESSIONS = 1000


server = jetstream_fixture("function")


def permissions_of(stream: Stream, user: int) -> Permissions:
    return Permissions(
        [stream.all],
        [stream.subject(f"shared.{user}")],
        aliases={"me.": stream.subject(f"users.{user}."), "we.": stream.subject(f"users.{user % 3}.")},
        history=[stream.all],
        identity=str(user),
    )


def expected(stream: Stream, user: int, subjects: list[str]) -> set[tuple[str, str, str]]:
    """Return the pattern, the subject and the data of each message that a user may see."""
    own, team = stream.subject(f"users.{user}."), stream.subject(f"users.{user % 3}.")
    found = set()
    for subject in subjects:
        if subject.startswith(own):
            found.add(("me.>", subject.replace(own, "me."), subject))
        if subject.startswith(f"{team}orders."):
            found.add(("we.orders.*", subject.replace(team, "we."), subject))
        if not subject.startswith((own, team)) and subject != stream.subject(f"shared.{user}"):
            found.add((stream.all, subject, subject))
            if ".shared." in subject:
                found.add((stream.subject("shared.*"), subject, subject))
    return found


async def before_end(client: WebSocketClient | EventClient, end: str) -> list[tuple[str, str, str]]:
    """Return the pattern, the subject and the data of each message before the last one."""
    found: list[tuple[str, str, str]] = []
    while not found or found[-1][2] != end:
        frame = await client.frame()
        if frame["type"] == "message":
            found.append((frame["pattern"], frame["subject"], frame["data"]))
    return found[:-1]


async def test_thousand_sessions_with_ten_permission_sets_are_isolated(server: NatsServer) -> None:
    async with Stream.made(server) as stream, contextlib.AsyncExitStack() as stack:
        subjects = [stream.subject(kind) for user in range(10) for kind in (f"users.{user}.orders.1", f"shared.{user}")]
        settings: dict[str, Any] = {
            "streams": {stream.name: None},
            "permissions": lambda request: permissions_of(stream, int(request.headers["x-user"])),
            "max_sessions_per_identity": SESSIONS // 10,
        }
        bridge = await stack.enter_async_context(running(servers=server.url, **settings))
        for subject in subjects:
            await stream.store(subject.removeprefix(f"{stream.prefix}."), subject)
        await stream.store("end", "past")
        patterns = ["me.>", "we.orders.*", stream.all, stream.subject("shared.*")]
        clients: list[tuple[int, WebSocketClient | EventClient]] = []
        for number in range(SESSIONS):
            user, headers = number % 10, {"X-User": str(number % 10)}
            if number // 10 % 2:
                client = await stack.enter_async_context(bridge.websocket(additional_headers=headers))
                await client.send({"subjects": patterns, "from": "all"})
                clients.append((user, client))
            else:
                query = [*(("subjects", each) for each in patterns), ("from", '"all"')]
                events = bridge.http.get(f"{bridge.url}/events", params=query, headers=headers)
                clients.append((user, EventClient(await stack.enter_async_context(events))))
        for end in ("past", "live"):
            for user, each in clients:
                found = await before_end(each, end)
                assert len(found) == len(set(found))
                assert set(found) == expected(stream, user, subjects)
            if end == "past":
                for subject in subjects:
                    await stream.store(subject.removeprefix(f"{stream.prefix}."), subject)
                await stream.store("end", "live")
