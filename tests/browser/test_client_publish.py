"""Publishes and requests of the browser client: in simulated pages, on a fake bridge that follows the protocol.

``PUBLISH_WALKS=20000 python -m pytest tests/browser/test_client_publish.py`` makes so many random runs. A run is
repeated by its seed: ``node tests/support/node/publish_walks.js sanic_nats_bridge/browser <seed> 1``.
"""

import json
import os
import random
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.node_program import NODE

BROWSER = Path(__file__).parents[2] / "sanic_nats_bridge" / "browser"

WALKS: Final = int(os.environ.get("PUBLISH_WALKS", "300"))
MOST_WALKS_TO_FAULT: Final = 3000

WEBSOCKET: Final = '{ transports: ["websocket"] }'
SSE: Final = '{ transports: ["sse"] }'
SHARED: Final = '{ transports: ["sse"], share: "ada" }'

each = pytest.mark.parametrize("options", [WEBSOCKET, SSE, SHARED], ids=["websocket", "sse", "shared"])
single = pytest.mark.parametrize("options", [WEBSOCKET, SSE], ids=["websocket", "sse"])


def run_node(name: str, *arguments: object) -> list[Any]:
    """Return what the program prints, as JSON."""
    node = shutil.which("node")
    assert node is not None, "make test installs node"
    command = [node, str(NODE / name), str(BROWSER), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def simulated(body: str) -> Any:
    (result,) = run_node("simulate_publishers.js", body)
    return result


def opened(options: str) -> str:
    """Return the code that opens a page; of two pages that share a stream, the one that doesn't lead."""
    leader = f"world.open({options}); await world.run(1000);" if options is SHARED else ""
    return f"{leader} const page = world.open({options}); await world.run(3000); const {{ bridge }} = world;"


# Random runs


def test_publishes_are_stored_as_their_outcomes_state_in_random_runs() -> None:
    first = random.randrange(2**31)
    (outcomes,) = run_node("publish_walks.js", first, WALKS)
    assert {"publish with ack: done", "publish with ack: publish.unknown", "request: done"} <= outcomes.keys()


@pytest.mark.parametrize(
    ("line", "replacement"),
    [
        ("if (ack) command.msg_id", "if (0) command.msg_id"),
        (" && Date.now() < wallEnd", ""),
        ('if (isUncertain) error.code = "publish.unknown";', ""),
        ("isUncertain ||= UNCERTAIN_CODES", "isUncertain ||= /unknown/"),
        ("if (!ack || !(TRANSIENT", "if (!(TRANSIENT"),
        (" && logins === this.#logins", ""),
    ],
)
def test_random_runs_find_fault_without(line: str, replacement: str) -> None:
    (found,) = run_node("publish_walks.js", 1, MOST_WALKS_TO_FAULT, line, replacement)
    assert found


# Outcomes


@each
def test_publish_and_request_resolve_with_the_reply(options: str) -> None:
    acknowledged, published, requested = simulated(f"""
      {opened(options)}
      const noted = [page.publish({{ ack: true }}), page.publish({{ headers: {{ Trace: ["x"] }} }}), page.request()];
      await world.run(1000);
      return (await Promise.all(noted)).map(({{ reply }}) => reply);
    """)
    assert acknowledged.items() >= {"success": True, "stream": "ROOMS", "sequence": 1, "duplicate": False}.items()
    assert published["success"] is True
    assert requested.items() >= {"subject": "svc.echo", "data": {"echo": 3}}.items()


@each
def test_commands_have_the_arguments_of_the_page(options: str) -> None:
    received = simulated(f"""
      {opened(options)}
      const headers = {{ Trace: ["x", "y"] }};
      page.nats.publish("a", {{ text: "hi" }});
      page.nats.publish("a");
      page.nats.publish("a", null, {{ headers }});
      page.nats.publish("a", "aGk=", {{ encoding: "base64", ack: true, msg_id: "mine" }});
      page.nats.request("b", [1], {{ timeout: 2, headers, encoding: "text" }});
      page.nats.request("b", undefined, {{ ack: true }});
      await world.run(1000);
      const commands = bridge.received.filter(({{ subject }}) => subject);
      return commands.map(({{ id, ...command }}) => command);
    """)
    headers = {"Trace": ["x", "y"]}
    expected: list[dict[str, Any]] = [
        {"action": "publish", "subject": "a", "data": {"text": "hi"}},
        {"action": "publish", "subject": "a"},
        {"action": "publish", "subject": "a", "data": None, "headers": headers},
        {"action": "publish", "subject": "a", "data": "aGk=", "encoding": "base64", "ack": True, "msg_id": "mine"},
        {"action": "request", "subject": "b", "data": [1], "timeout": 2, "headers": headers, "encoding": "text"},
        {"action": "request", "subject": "b"},
    ]
    assert len(received) == len(expected)
    assert all(command in received for command in expected)


@each
def test_failed_reply_is_an_error_with_its_fields(options: str) -> None:
    errors = simulated(f"""
      {opened(options)}
      const noted = [page.request("none"), page.request("slow", {{ timeout: 2 }}), page.request("broken")];
      await world.run(500);
      bridge.refuse = () => ({{ code: "limit.publish", message: "Too fast", retry: 1500 }});
      noted.push(page.publish());
      await world.run(500);
      bridge.refuse = () => null;
      bridge.nats.isReady = false;
      noted.push(page.publish({{ ack: true }}));
      await world.run(5000);
      return (await Promise.all(noted)).map(({{ error }}) => [error.message, {{ ...error }}]);
    """)
    assert [error for _, error in errors[:2]] == [{"code": "request.no_responders"}, {"code": "request.timeout"}]
    assert errors[2:] == [
        ["out of order", {"code": "request.failed", "serviceCode": "500"}],
        ["Too fast", {"code": "limit.publish", "retry": 1500}],
        ["publish.unstored", {"code": "publish.unstored", "description": "no interest"}],
    ]


@each
def test_bridge_without_the_feature_gets_nothing(options: str) -> None:
    assert simulated(f"""
      world.bridge.features = ["history"];
      {opened(options)}
      const noted = [page.publish({{ ack: true }}), page.publish(), page.request()];
      const later = world.open({options}).publish({{ ack: true }}); // before the welcome
      await world.run(3000);
      const done = await Promise.all([...noted, later]);
      const codes = done.map(({{ outcome, milliseconds }}) => [outcome, milliseconds]);
      return [codes.slice(0, 3), codes[3][0], bridge.received.filter(({{ subject }}) => subject).length];
    """) == [[["command.unsupported", 0]] * 3, "command.unsupported", 0]


@each
def test_publish_without_ack_and_request_are_sent_once_or_not_at_all(options: str) -> None:
    assert simulated(f"""
      {opened(options)}
      bridge.refuse = () => ({{ code: "nats.unavailable" }});
      const noted = [page.publish(), page.request()];
      await world.run(1000);
      bridge.refuse = () => ({{ code: "limit.publish", retry: 1 }});
      noted.push(page.publish());
      await world.run(1000);
      bridge.restart(60_000);
      await world.run(1000);
      noted.push(page.publish(), page.request());
      await world.run(200_000);
      const codes = (await Promise.all(noted)).map(({{ outcome }}) => outcome);
      return [codes, bridge.received.filter(({{ subject }}) => subject).length];
    """) == [["nats.unavailable", "nats.unavailable", "limit.publish", "disconnected", "disconnected"], 3]


@single
def test_data_that_is_not_json_throws_and_sends_nothing(options: str) -> None:
    assert simulated(f"""
      {opened(options)}
      const before = bridge.received.length;
      const names = [];
      for (const data of [1n, {{ get x() {{ throw new TypeError("no") }} }}]) {{
        await page.nats.publish("a", data, {{ ack: true }}).catch(({{ name }}) => names.push(name));
        await page.nats.request("a", data).catch(({{ name }}) => names.push(name));
      }}
      return [names, bridge.received.length - before];
    """) == [["TypeError"] * 4, 0]


# Repetition


def _cut_publishes(options: str, harm: str) -> Any:
    """Let a fault happen at each of many moments of an acknowledged publish; returns what became of them."""
    return simulated(f"""
      const outcomes = [], faults = [];
      let duplicates = 0, attempts = 0;
      for (let moment = 0; moment < 200; moment += 5) {{
        const world = create(moment);
        {opened(options)}
        const noted = page.publish({{ ack: true }});
        await world.run(moment);
        {harm}
        await world.run(99_000);
        const {{ outcome, reply }} = world.outcomes[0];
        outcomes.push(outcome);
        duplicates += !!reply?.duplicate;
        attempts = Math.max(attempts, bridge.received.filter(({{ subject }}) => subject).length);
        faults.push(...world.faults);
        if (bridge.nats.stored.length !== 1) faults.push(`${{moment}}: ${{bridge.nats.stored.length}} stored`);
      }}
      return [[...new Set(outcomes)], faults, duplicates > 0, attempts > 1];
    """)


@pytest.mark.parametrize(
    "harm",
    [
        "for (const link of bridge.links) link.cut();",
        "for (const link of bridge.links) link.cut(true);",
        "bridge.restart(5000);",
    ],
    ids=["cut", "silent cut", "killed bridge"],
)
def test_cut_publish_is_acknowledged_and_stored_once_on_a_websocket(harm: str) -> None:
    assert _cut_publishes(WEBSOCKET, harm) == [["done"], [], True, True]


@pytest.mark.parametrize("options", [SSE, SHARED], ids=["sse", "shared"])
@pytest.mark.parametrize("harm", ["bridge.restart(5000);", "bridge.restart(40_000);"], ids=["short", "long"])
def test_publish_by_post_is_acknowledged_and_stored_once_if_the_bridge_is_killed(options: str, harm: str) -> None:
    assert _cut_publishes(options, harm) == [["done"], [], True, True]


@each
def test_publish_is_acknowledged_and_stored_once_if_nats_is_killed(options: str) -> None:
    assert _cut_publishes(options, "bridge.nats.restart(5000);") == [["done"], [], True, True]


@each
def test_publish_is_repeated_while_no_stream_takes_it_if_it_may_be_stored(options: str) -> None:
    assert simulated(f"""
      {opened(options)}
      const noted = [page.publish({{ ack: true }})];
      while (!bridge.nats.stored.length) await world.run(1);
      bridge.nats.restart(100, 30_000); // the acknowledgement is lost
      await world.run(20_000);
      noted.push(page.publish({{ ack: true }}));
      await world.run(60_000);
      return (await Promise.all(noted)).map(({{ outcome, reply }}) => [outcome, reply?.duplicate]);
    """) == [["done", True], ["publish.unstored", None]]


@pytest.mark.parametrize("failure", ["lost", "unanswered", "hung", "502", "403"])
def test_post_that_fails_on_the_way_is_repeated_with_ack_alone(failure: str) -> None:
    repeated, once, stored, sent, faults = simulated(f"""
      {opened(SSE)}
      let left = 2;
      world.failPost = () => (left-- > 0 ? "{failure}" : null);
      const noted = [page.publish({{ ack: true }})];
      await world.run(60_000);
      left = 1;
      noted.push(page.publish());
      await world.run(60_000);
      const outcomes = (await Promise.all(noted)).map(({{ outcome }}) => outcome);
      return [...outcomes, bridge.nats.stored.length, bridge.nats.sent.length, world.faults];
    """)
    assert (repeated, stored, faults) == ("done", 1, [])
    assert once == ("blocked" if failure in ("hung", "403") else "disconnected")
    assert sent == (failure not in ("lost", "403"))


def test_repetitions_have_one_random_id_and_the_same_data_on_either_transport() -> None:
    ids, data, transports = simulated("""
      const page = world.open({});
      await world.run(3000);
      const { bridge } = world;
      bridge.refuse = ({ action }) => (action === "publish" ? { code: "publish.unknown" } : null);
      const data = { text: "first" };
      const transports = [page.nats.status.transport];
      page.nats.publish("a", data, { ack: true });
      page.publish({ ack: true });
      data.text = "second";
      await world.run(10_000);
      page.scope.WebSocket.prototype.send = () => {}; // no WebSocket gets through any more
      for (let index = 0; index < 3; index++) {
        for (const link of bridge.links) link.cut();
        await world.run(10_000);
      }
      transports.push(page.nats.status.transport);
      await world.run(10_000);
      const first = bridge.received.filter(({ subject }) => subject === "a");
      const both = bridge.received.filter(({ action }) => action === "publish");
      const unique = (list) => [...new Set(list)];
      return [unique(both.map(({ msg_id }) => msg_id)), unique(first.map(({ data }) => data.text)), transports];
    """)
    assert transports == ["websocket", "sse"]
    assert data == ["first"]
    assert len(ids) == 2
    for msg_id in ids:
        assert len(msg_id) <= 64
        numbers = [int(part) for part in msg_id.split("-")]
        assert len(numbers) == 4
        assert all(0 <= number < 2**32 for number in numbers)


@each
def test_limited_publish_with_ack_is_repeated_after_the_time_that_the_bridge_names(options: str) -> None:
    times, outcome = simulated(f"""
      {opened(options)}
      const times = [];
      bridge.refuse = ({{ action }}) => {{
        if (action !== "publish") return null;
        times.push(world.now);
        return times.length < 4 ? {{ code: "limit.publish", retry: 7000 }} : null;
      }};
      const noted = page.publish({{ ack: true }});
      await world.run(60_000);
      return [times, (await noted).outcome];
    """)
    assert outcome == "done"
    assert len(times) == 4
    assert all(7000 <= later - time < 7200 for time, later in pairwise(times))


@each
@pytest.mark.parametrize(
    ("start", "code"),
    [
        ('bridge.refuse = () => ({ code: "publish.unknown" });', "publish.unknown"),
        ('bridge.refuse = () => ({ code: "limit.publish", retry: 500 });', "limit.publish"),
        ("bridge.restart(1e9); await world.run(3000);", "disconnected"),
    ],
    ids=["unknown", "limited", "disconnected"],
)
def test_publish_is_repeated_for_100_seconds(options: str, start: str, code: str) -> None:
    outcome, seconds, last = simulated(f"""
      {opened(options)}
      {start}
      const begin = world.now;
      const noted = page.publish({{ ack: true }});
      let last = 0;
      const {{ refuse }} = bridge;
      bridge.refuse = (command) => {{
        if (command.action === "publish") last = world.now - begin;
        return refuse(command);
      }};
      await world.run(300_000);
      const {{ outcome, milliseconds }} = await noted;
      return [outcome, milliseconds / 1000, last / 1000];
    """)
    # A tab can't know that a stream of another one has ended before its POST has failed.
    assert outcome == (code if options is not SHARED or code != "disconnected" else "publish.unknown")
    assert 80 <= seconds < 121
    assert last < 101


def test_publish_is_not_repeated_after_a_sleep_or_by_a_clock_that_was_set_back() -> None:
    assert (
        simulated(f"""
      const results = [];
      for (const change of [() => world.sleep(200_000), () => (page.clockError -= 1e9)]) {{
        var {{ page, bridge }} = await (async () => {{ {opened(WEBSOCKET)} return {{ page, bridge }} }})();
        let isKnown = false;
        bridge.refuse = ({{ action }}) => (action !== "publish" ? null : {{ code: "publish.unknown" }});
        const noted = page.publish({{ ack: true }});
        await world.run(5000);
        await change();
        const before = bridge.received.length;
        await world.run(300_000);
        results.push([(await noted).outcome, (await noted).milliseconds <= 250_000]);
      }}
      return results;
    """)
        == [["publish.unknown", True]] * 2
    )


@each
def test_request_and_publish_with_ack_wait_for_the_connection(options: str) -> None:
    assert simulated(f"""
      const page = world.open({options});
      const noted = [page.publish({{ ack: true }}), page.publish(), page.request()];
      await world.run(5000);
      return (await Promise.all(noted)).map(({{ outcome }}) => outcome);
    """) == ["done", "disconnected", "done"]


@single
def test_closed_client_ends_its_publishes(options: str) -> None:
    codes, milliseconds = simulated(f"""
      {opened(options)}
      bridge.refuse = () => ({{ code: "publish.unknown" }});
      const noted = [page.publish({{ ack: true }})];
      await world.run(1000);
      bridge.restart(1e9);
      await world.run(1000);
      noted.push(page.publish({{ ack: true }}));
      await world.run(1000);
      const at = world.now;
      page.nats.close();
      await world.run(10);
      noted.push(page.publish({{ ack: true }}), page.publish());
      await world.run(10);
      const done = await Promise.all(noted);
      return [done.map(({{ outcome }}) => outcome), world.now - at];
    """)
    assert codes == ["publish.unknown", "disconnected", "disconnected", "disconnected"]
    assert milliseconds < 100


@each
def test_publish_is_not_repeated_for_another_user(options: str) -> None:
    outcomes, received, after = simulated(f"""
      {opened(options)}
      bridge.refuse = ({{ action }}) => (action === "publish" ? {{ code: "publish.unknown" }} : null);
      const noted = [page.publish({{ ack: true }})];
      await world.run(3000);
      page.login();
      noted.push(page.publish({{ ack: true }}));
      const attempts = () => bridge.received.filter(({{ data }}) => data === 1).length;
      const received = attempts();
      bridge.refuse = () => null;
      await world.run(60_000);
      return [(await Promise.all(noted)).map(({{ outcome }}) => outcome), received, attempts() - received];
    """)
    assert (outcomes, received > 0, after) == (["publish.unknown", "done"], True, 0)


def test_credentials_that_expire_are_renewed_and_the_publish_is_repeated() -> None:
    assert simulated("""
      let renewals = 0;
      const page = world.open({ transports: ["sse"], credentials: async () => void renewals++ });
      await world.run(3000);
      world.bridge.refuse = () => (renewals > 1 ? null : { code: "auth.required" });
      const noted = page.publish({ ack: true });
      await world.run(5000);
      return [(await noted).outcome, renewals];
    """) == ["done", 2]


def test_slow_reply_ends_no_connection_that_lives() -> None:
    assert simulated(f"""
      {opened(WEBSOCKET)}
      const pings = () => bridge.received.filter(({{ action }}) => action === "ping").length;
      const before = pings();
      const noted = page.request("slow", {{ timeout: 25 }});
      await world.run(30_000);
      const after = pings();
      const [link] = bridge.links;
      link.send = () => {{}}; // nothing gets to the bridge any more, but the heartbeats come
      const lost = page.request();
      await world.run(30_000);
      return [(await noted).outcome, after - before, (await lost).outcome, [...bridge.links].includes(link)];
    """) == ["request.timeout", 1, "disconnected", False]


# Tabs that share a stream


@pytest.mark.parametrize(
    "harm", ["leader.close();", "leader.suspend();", 'leader.dispatch("freeze"); leader.suspend();']
)
def test_publish_of_a_tab_does_not_depend_on_the_leader(harm: str) -> None:
    outcomes, stored, sent, asked, faults = simulated(f"""
      const leader = world.open({SHARED});
      await world.run(3000);
      {opened(SHARED)}
      const noted = [page.publish({{ ack: true }}), page.publish(), page.request()];
      await world.run(20);
      {harm}
      for (let index = 0; index < 20; index++) {{
        noted.push(page.publish({{ ack: true }}));
        await world.run(5000);
      }}
      await world.run(10_000);
      const {{ stored, sent, asked }} = bridge.nats;
      const outcomes = (await Promise.all(noted)).map(({{ outcome }}) => outcome);
      return [[...new Set(outcomes)], stored.length, sent.length, asked.length, world.faults];
    """)
    assert (outcomes, stored, sent, asked, faults) == (["done"], 21, 1, 1, [])
