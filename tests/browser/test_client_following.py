"""The browser client in Node, in sessions that follow patterns without a command."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.browser.test_client_node import both, evaluated, following
from tests.support.bridge import Bridge, running, until
from tests.support.bridge_proxy import BridgeProxy
from tests.support.restricted import restricted

PERMISSIONS = Permissions(["news"], follow=["users.7.notice", "all"], aliases={"me.": "users.7."}, identity="7")
FOLLOWED = {"me.notice", "all"}


@contextlib.asynccontextmanager
async def pushing(server: NatsServer, permissions: Permissions = PERMISSIONS, **settings: Any) -> AsyncIterator[Bridge]:
    """Serve a bridge whose app pushes to one user until the end of the block."""
    async with running(servers=server.url, permissions=lambda _: permissions, **settings) as bridge:

        async def push() -> None:
            number = 0
            while True:
                number += 1
                for subject in ("users.7.notice", "all", "news"):
                    await bridge.extension.publish(subject, number)
                await asyncio.sleep(0.01)

        task = asyncio.create_task(push())
        try:
            yield bridge
        finally:
            task.cancel()


@both
async def test_page_subscribes_to_followed_patterns(shared_nats: NatsServer, transport: str) -> None:
    body = """
      const nats = client();
      const next = (pattern) =>
        new Promise((resolve) => nats.subscribe(pattern, (data, { subject }) => resolve(subject)));
      const first = await next("me.notice");
      const { active, success } = await nats.subscribe("all").ready;
      const other = await next("news");
      while (nats.status.state !== "connected") await turn();
      nats.close();
      return [first, active, success, other, errors];
    """
    async with pushing(shared_nats) as bridge:
        result = await evaluated(bridge, transport, body)
    assert result == ["me.notice", True, True, "news", []]


@both
async def test_unsubscribe_from_a_followed_pattern_does_no_harm(shared_nats: NatsServer, transport: str) -> None:
    body = """
      const nats = client();
      const ended = [], frames = [];
      nats.addEventListener("unsubscribed", ({ detail }) => ended.push(detail));
      nats.addEventListener("frame", ({ detail: { type, action, code } }) => {
        if (type === "reply") frames.push([action, code ?? null]);
      });
      const next = (subscription) => subscription[Symbol.asyncIterator]().next().then(({ value }) => value.subject);
      const subjects = ["me.notice", "all", "news"];
      const subscriptions = subjects.map((subject) => nats.subscribe(subject, () => {}));
      await Promise.all(subscriptions.map(({ ready }) => ready));
      for (const subscription of subscriptions) subscription.unsubscribe();
      // Each command is for one pattern after one for several has failed. The last one comes when all have their reply.
      while (!frames.some(([action, code]) => action === "unsubscribe" && !code)) await turn();
      const count = frames.length;
      const again = await Promise.all(subjects.map((subject) => next(nats.subscribe(subject))));
      while (nats.status.state !== "connected") await turn();
      nats.close();
      return [again, ended, errors, frames.slice(0, count).filter(([action]) => action === "unsubscribe")];
    """
    async with pushing(shared_nats) as bridge:
        again, ended, errors, frames = await evaluated(bridge, transport, body)
    assert (again, ended, errors) == (["me.notice", "all", "news"], [], [])
    refused = ["unsubscribe", "subject.forbidden"]
    assert frames == [refused, refused, refused, ["unsubscribe", None]]


@both
async def test_page_follows_in_each_session(shared_nats: NatsServer, transport: str) -> None:
    async with (
        running(servers=shared_nats.url, permissions=lambda _: PERMISSIONS) as bridge,
        BridgeProxy(bridge.port).running() as proxy,
        following(f"{proxy.url}/nats", transport, "me.notice", "news") as node,
    ):
        assert await node.line() == ["ready", [True, True]]
        proxy.cut()
        subjects = {"me.notice", "news"}
        named = {subject for kind, gap in [await node.line()] if kind == "gap" for subject in gap["subjects"]}
        while named != subjects:
            kind, gap = await node.line()
            assert kind == "gap"
            named |= {*gap["subjects"]}
        await until(lambda: [{*each.subscriptions} for each in bridge.extension.sessions] == [FOLLOWED | subjects])
        await bridge.extension.publish("users.7.notice", 1)
        assert await node.line() == ["message", "me.notice", 1]
        node.say("close")
        assert [await node.line(), await node.line()] == [["ended", None]] * 2
        await until(lambda: not bridge.extension.sessions)


@both
async def test_page_subscribes_with_a_start(shared_nats: NatsServer, transport: str) -> None:
    body = """
      const nats = client();
      const followed = nats.subscribe("me.notice", { from: "new" }, () => {});
      const first = await followed.caughtUp;
      followed.unsubscribe();
      const again = await nats.subscribe("me.notice", { after: "x" }, () => {}).ready;
      nats.close();
      return [first, again.success, errors];
    """
    with NatsServer(jetstream=True) as server:
        async with pushing(server, streams={"NONE": None}) as bridge:
            result = await evaluated(bridge, transport, body)
    assert result == [{"replayed": 0, "recovered": True}, True, []]


async def test_reply_for_followed_patterns_is_not_that_to_the_query() -> None:
    body = """
      const nats = client();
      const subjects = ["news", "me.notice", "open"];
      const describe = ({ code, subjects }) => [code, subjects];
      const ready = subjects.map((subject) => nats.subscribe(subject, () => {}).ready.catch(describe));
      const [news, notice, open] = await Promise.all(ready);
      while (nats.status.state !== "connected") await turn();
      nats.close();
      return [news, notice.success, open.success, errors];
    """
    with NatsServer(config=restricted(denied=["news"])) as server:
        url = server.url.replace("://", "://bridge:bridge@")
        permissions = replace(PERMISSIONS, subscribe=["news", "open"])
        async with running(servers=url, permissions=lambda _: permissions) as bridge:
            result = await evaluated(bridge, "sse", body)
    assert result == [["nats.refused", ["news"]], True, True, []]
