"""The documents as programs: each block of code is run, in the order of its page, in a folder of its own.

A block with a title is a file. Other blocks are run by their language: ``bash`` in a shell, ``js`` as a module in an
open page of Chromium; ``text`` is the output of the last command, with ``…`` for what differs each time; lines of
``nginx`` must be in the configuration that the tests of the proxies use; ``json`` and ``http`` hold frames and
commands.

A comment ``<!-- test: … -->`` before a block sets how it is run:

- ``keep running`` (a server, until the end of the page), with ``port N`` to wait for, or ``with npm packages``
- ``exits with STATUS``
- ``given NAME, NAME = VALUE`` (functions that the script calls, and what they return)
- ``dry run, REASON`` (only what ``make`` would do)
- ``not run: REASON``

Elsewhere it is a step between the blocks, which the reader takes or sees:

- ``take FILE, FILE from PAGE`` (files of another page)
- ``start nats-server`` (at port 4222; ``with stream NAME SUBJECTS`` if the page needs JetStream)
- ``serve MODULE:APP`` (at port 8000, with a nats-server)
- ``stop the last command``
- ``import MODULE``
- ``no path of this machine in FOLDER``
- ``open URL``, ``fill FIELD with TEXT``, ``click BUTTON``, ``page shows TEXT``, ``page lacks TEXT``
- ``publish SUBJECT PAYLOAD``, once or ``until NAME gets TEXT, TEXT``
- ``NAME gets TEXT, TEXT`` (a function that was given is called with these in its arguments)
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from sanic_nats_bridge.protocol import messages
from sanic_nats_bridge.protocol.publish import decode_publish
from tests.support.bridge import WAIT_SECONDS, free_port, wait_until
from tests.support.page import chromium
from tests.support.process import APP_ENVIRONMENT

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
"""Every document."""

_COMMENT = re.compile(r"\s*<!-- test: (.+) -->")
_FENCE = re.compile(r'(\s*)```(\w*)(?: title="([^"]+)")?')
_MODIFIERS = ("keep running", "exits with", "given", "dry run", "not run")
_TAKE = r"take (.+) from (\S+)"
_NODE = ROOT / "tests" / "support" / "node" / "node_modules"
_BROWSER = ROOT / "sanic_nats_bridge" / "browser"
_PORTS = ("4222", "8000", "8001", "5001", "5173", "8080")
_HOSTS = {
    "https://api.example": "http://127.0.0.1:8000",
    "https://app.example": "http://localhost:8000",
    "10.0.0.1": "127.0.0.1",
}
_FILE_LANGUAGES = ("python", "html", "js", "conf", "toml")
_GIVEN = """(functions) => {
  globalThis.calls = [];
  for (const [name, result] of functions) {
    const path = name.split(".");
    const owner = path.length > 1 ? globalThis[path[0]] : globalThis;
    owner[path.at(-1)] = (...values) => { calls.push([name, values]); return result; };
  }
}"""

Frame = (
    messages.Welcome
    | messages.Reply
    | messages.CaughtUp
    | messages.Gap
    | messages.Unsubscribed
    | messages.Status
    | messages.Heartbeat
    | messages.Close
)


@dataclass
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    title: str | None
    text: str
    how: str
    """The comment before it."""


@dataclass
class Step:
    """An action or observation of the reader between the blocks."""

    line: int
    text: str


@cache
def parse(page: str) -> tuple[Block | Step, ...]:
    """Return the blocks of a page, and the steps between them."""
    parts: list[Block | Step] = []
    lines = enumerate((ROOT / page).read_text().splitlines(), 1)
    how = ""
    for number, line in lines:
        if comment := _COMMENT.fullmatch(line):
            if comment[1].startswith(_MODIFIERS):
                how = comment[1]
            else:
                parts.append(Step(number, comment[1]))
        elif line.lstrip().startswith("```"):
            fence = _FENCE.fullmatch(line)
            assert fence is not None, f"{page}:{number}: {line}"
            content = []
            for _, inner in lines:
                if inner == f"{fence[1]}```":
                    break
                content.append(inner)
            else:
                raise AssertionError(f"{page}:{number}: the block has no end")
            text = textwrap.dedent("\n".join(content)) + "\n"
            parts.append(Block(number, fence[2], fence[3], text, how))
            how = ""
        else:
            assert not how or not line.strip(), f"{page}:{number}: no block follows '{how}'"
    return tuple(parts)


def blocks(page: str, language: str | None = None) -> list[Block]:
    """Return the blocks of a page, or those in one language."""
    return [part for part in parse(page) if isinstance(part, Block) and language in (None, part.language)]


def file_of(page: str, title: str) -> str:
    """Return the file of that title."""
    (block,) = (block for block in blocks(page) if block.title == title)
    return block.text


def python_files(page: str) -> dict[str, str]:
    """Return the modules that the reader of a page has: its own, and those taken from other pages."""
    files = {block.title: block.text for block in blocks(page, "python") if block.title is not None}
    for part in parse(page):
        if isinstance(part, Step) and (taken := re.fullmatch(_TAKE, part.text)):
            source = _source(page, taken[2])
            files |= {name: file_of(source, name) for name in taken[1].split(", ") if name.endswith(".py")}
    return files


def _source(page: str, other: str) -> str:
    return (ROOT / page).parent.joinpath(other).resolve().relative_to(ROOT).as_posix()


def table(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below the heading, without its header."""
    text = (ROOT / page).read_text()
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"{page} has no heading '{heading}'"
    found = re.search(r"(?:^\|.*\n)+", section[1], re.MULTILINE)
    assert found is not None
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in found.group().splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


class Story:
    """One page, as its reader goes through it."""

    def __init__(self, page: str, folder: Path) -> None:
        self.page = page
        self._folder = folder
        self._ports = {port: str(free_port()) for port in _PORTS}
        self._stack = contextlib.ExitStack()
        self._browser: Browser | None = None
        self._tab: Page | None = None
        self._complaints: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        """The last command."""
        self._served: subprocess.Popen[bytes] | None = None
        self._commands = ""
        self._log = folder / ".log-0"
        self._read = 0
        self._logs = 0

    def run(self) -> None:
        """Go through the page, and end what it has started."""
        with self._stack:
            for part in parse(self.page):
                try:
                    if isinstance(part, Step):
                        self._step(part.text)
                    else:
                        self._block(part)
                except Exception as error:
                    error.add_note(f"at {self.page}:{part.line}")
                    raise
        modules = python_files(self.page)
        for name in modules:
            module = name.removesuffix(".py")
            used = re.search(rf"\b{module}\b", self._commands)
            assert used or f"from {module} import" in "".join(modules.values()), f"{self.page} doesn't run {name}"
        assert self._complaints == [], self._complaints

    def _here(self, text: str) -> str:
        """Return the text with the ports and hosts of this run."""
        for host, here in _HOSTS.items():
            text = text.replace(host, here)
        return re.sub(rf"\b({'|'.join(_PORTS)})\b", lambda found: self._ports[found[1]], text)

    # Blocks

    def _block(self, block: Block) -> None:
        if block.how.startswith("not run"):
            return
        if block.title is not None:
            assert block.language in _FILE_LANGUAGES, block.language
            self._write(block.title, block.text)
            return
        run: dict[str, Callable[[Block], None]] = {
            "bash": self._bash,
            "text": self._output,
            "js": self._script,
            "json": _check_json,
            "http": _check_http,
            "nginx": _check_nginx,
        }
        run[block.language](block)

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(self._here(text))

    def _bash(self, block: Block) -> None:
        how = block.how.split(", ")
        if how[0] == "dry run":
            _check_make(block.text)
            return
        command, folder, environment = self._here(block.text), self._folder, self._environment()
        if command.startswith("make "):
            # With this Python's environment as it is, instead of .venv.
            command = command.replace("make ", f"make -o {sys.prefix}/.run VENV={sys.prefix} ", 1)
            folder = ROOT
            environment["ARGS"] = f"--port {self._ports['5001']}"
        if "with npm packages" in how:
            self._link_packages()
        process = self._start(["bash", "-euo", "pipefail", "-c", command], folder, environment)
        if how[0] != "keep running":
            status = int(how[0].removeprefix("exits with ") or 0)
            assert process.wait(WAIT_SECONDS) == status, self._log.read_text()
            said = self._log.read_text()
            assert "WARNING" not in said, said
        for word in how[1:]:
            if word.startswith("port "):
                self._await_port(word.removeprefix("port "), process)

    def _environment(self) -> dict[str, str]:
        here = Path(sys.executable).parent
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        return kept | {
            "PATH": f"{here}:/usr/local/bin:/usr/bin:/bin",
            **APP_ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join([str(ROOT), APP_ENVIRONMENT["PYTHONPATH"]]),
            "PYTHONUNBUFFERED": "1",
            # For apps that take the default.
            "SANIC_NATS_BRIDGE_SERVERS": self._here("nats://127.0.0.1:4222"),
            # What is installed is enough; nothing is fetched or changed.
            "NPM_CONFIG_OFFLINE": "true",
            "NPM_CONFIG_UPDATE_NOTIFIER": "false",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_DRY_RUN": "1",
            "PIP_NO_INDEX": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    def _start(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        self._logs += 1
        self._commands += " ".join(command) + "\n"
        self._log = self._folder / f".log-{self._logs}"
        self._read = 0
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._stack.callback(_end, process)
        self._process = process
        return process

    def _await_port(self, port: str, process: subprocess.Popen[bytes]) -> None:
        number = int(self._ports[port])
        self._until(lambda: process.poll() is not None or _listens(number))
        assert process.poll() is None, self._log.read_text()
        if port != "4222":
            self._until(lambda: not _is_disconnected(number))

    def _link_packages(self) -> None:
        assert _NODE.is_dir(), "make test installs the npm packages"
        modules = self._folder / "node_modules"
        modules.mkdir(exist_ok=True)
        for package in (*_NODE.glob("[!.]*"), _NODE / ".bin"):
            if not (modules / package.name).exists():
                (modules / package.name).symlink_to(package)
        if not (modules / "sanic-nats-bridge").exists():
            shutil.copytree(_BROWSER, modules / "sanic-nats-bridge")

    def _output(self, block: Block) -> None:
        wanted = self._here(block.text).strip()
        expression = re.compile(re.escape(wanted).replace("…", ".*?"), re.DOTALL)
        process = self._process
        assert process is not None, "no command comes before the output"
        self._until(lambda: process.poll() is not None or expression.search(self._log.read_text(), self._read))
        said = self._log.read_text()
        # A command that has ended has printed nothing else.
        found = expression.search(said, self._read) if self._read or process.poll() != 0 else None
        found = found or expression.fullmatch(said.strip())
        assert found is not None, said
        self._read = found.end()

    def _script(self, block: Block) -> None:
        given = block.how.removeprefix("given ").split(", ") if block.how else []
        functions = []
        for each in given:
            name, _, result = each.partition(" = ")
            functions.append([name, json.loads(result or "null")])
        assert self._tab is not None, "no page is open"
        self._tab.evaluate(_GIVEN, functions)
        self._tab.add_script_tag(content=self._here(block.text), type="module")

    # Steps

    def _step(self, text: str) -> None:
        for expression, do in (
            (_TAKE, self._take),
            (r"start nats-server", self._start_nats),
            (r"start nats-server with stream (\S+) (\S+)", self._start_jetstream),
            (r"serve (\w+:\w+)", self._serve),
            (r"stop the (last) command", self._stop),
            (r"import (\w+)", self._import),
            (r"no path of this machine in (\w+)", self._check_paths),
            (r"open (\S+)", self._open),
            (r"fill (.+) with (.+)", self._fill),
            (r"click (.+)", self._click),
            (r"page shows (.+)", self._shows),
            (r"page lacks (.+)", self._lacks),
            (r"publish (\S+) (.+?)(?: until (\S+) gets (.+))?", self._publish),
            (r"(\S+) gets (.+)", self._gets),
        ):
            found = re.fullmatch(expression, text)
            if found is not None:
                do(*found.groups())
                return
        raise AssertionError(f"no such step: {text}")

    def _take(self, files: str, page: str) -> None:
        source = _source(self.page, page)
        for name in files.split(", "):
            self._write(name, file_of(source, name))

    def _start_nats(self, *options: str) -> None:
        command = ["nats-server", "-a", "127.0.0.1", "-p", self._ports["4222"], *options]
        self._await_port("4222", self._start(command, self._folder, self._environment()))

    def _start_jetstream(self, name: str, subject: str) -> None:
        self._start_nats("-js", "-sd", "jetstream")
        config = json.dumps({"name": name, "subjects": [subject], "storage": "memory", "allow_direct": True})
        answer = _publish(int(self._ports["4222"]), f"$JS.API.STREAM.CREATE.{name}", config.encode(), b"stream_create")
        assert b'"error"' not in answer, answer

    def _serve(self, app: str) -> None:
        if not _listens(int(self._ports["4222"])):
            self._start_nats()
        if self._served is not None:
            self._close_tab()
            _end(self._served)
        # The workers of a server that was killed end after it.
        self._until(lambda: not _listens(int(self._ports["8000"])))
        command = ["sanic", app, "--port", self._ports["8000"], "--single-process"]
        self._served = self._start(command, self._folder, self._environment())
        self._await_port("8000", self._served)

    def _stop(self, _: str) -> None:
        assert self._process is not None, "no command comes before"
        self._close_tab()
        _end(self._process)

    def _close_tab(self) -> None:
        # A page would complain that its server has gone.
        if self._tab is not None:
            self._tab.close()
            self._tab = None

    def _import(self, module: str) -> None:
        command = [sys.executable, "-c", f"import {module}"]
        assert self._start(command, self._folder, self._environment()).wait(WAIT_SECONDS) == 0, self._log.read_text()

    def _check_paths(self, name: str) -> None:
        files = [path for path in (self._folder / name).rglob("*") if path.is_file()]
        assert any(path.suffix == ".js" for path in files), files
        for path in files:
            text = path.read_text()
            for trace in ("file:///", str(ROOT), self._folder.name):
                assert trace not in text, f"{path} contains {trace}"

    def _open(self, url: str) -> None:
        if self._browser is None:
            self._browser = self._stack.enter_context(chromium())
        self._close_tab()
        self._tab = self._browser.new_page()
        self._tab.set_default_timeout(WAIT_SECONDS * 1000)
        self._tab.on("pageerror", lambda error: self._complaints.append(str(error)))
        self._tab.on("console", self._note)
        self._tab.goto(self._here(url))

    def _note(self, message: ConsoleMessage) -> None:
        # Chromium itself notes that a page has no icon.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self._complaints.append(message.text)

    def _fill(self, name: str, text: str) -> None:
        assert self._tab is not None, "no page is open"
        self._tab.get_by_placeholder(name, exact=True).fill(text)

    def _click(self, name: str) -> None:
        assert self._tab is not None, "no page is open"
        self._tab.get_by_role("button", name=name, exact=True).click()

    def _shows(self, text: str) -> None:
        assert self._tab is not None, "no page is open"
        # What is visible: the body also has the text of scripts.
        body = self._tab.locator("body")
        expect(body).to_contain_text(text, timeout=WAIT_SECONDS * 1000, use_inner_text=True)

    def _lacks(self, text: str) -> None:
        assert self._tab is not None, "no page is open"
        expect(self._tab.locator("body")).not_to_contain_text(text, timeout=WAIT_SECONDS * 1000, use_inner_text=True)

    def _publish(self, subject: str, payload: str, name: str | None, wanted: str | None) -> None:
        def publish() -> bool:
            _publish(int(self._ports["4222"]), subject, payload.encode())
            return name is None or wanted is None or self._was_called(name, wanted)

        # Again and again: the script has perhaps not subscribed yet.
        self._until(publish, 0.1)

    def _gets(self, name: str, wanted: str) -> None:
        self._until(lambda: self._was_called(name, wanted))

    def _was_called(self, name: str, wanted: str) -> bool:
        assert self._tab is not None, "no page is open"
        calls = self._tab.evaluate("calls")
        return any(
            each == name and all(word in json.dumps(values) for word in wanted.split(", ")) for each, values in calls
        )

    def _until(self, fact: Callable[[], Any], seconds: float = 0.02) -> None:
        def pause() -> None:
            if self._tab is not None:
                self._tab.wait_for_timeout(seconds * 1000)  # its events are handled meanwhile
            else:
                time.sleep(seconds)

        wait_until(fact, self._log.read_text, pause=pause)


def _end(process: subprocess.Popen[bytes]) -> None:
    # The number of a process that has ended may be another's by now.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
        return True
    return False


def _is_disconnected(port: int) -> bool:
    """Return whether a bridge with the default prefix answers at the port, and has no NATS yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/nats/health/ready", timeout=WAIT_SECONDS) as answer:
            return bool(json.load(answer)["nats"] == "disconnected")
    except (OSError, ValueError):
        return False


def _publish(port: int, subject: str, payload: bytes, answered_by: bytes = b"PONG") -> bytes:
    """Publish a message as a request; return what the server has sent up to these bytes."""
    with socket.create_connection(("127.0.0.1", port), WAIT_SECONDS) as connection:
        lines = b"CONNECT {}\r\nSUB reply 1\r\nPUB %b reply %d\r\n%b\r\nPING\r\n"
        connection.sendall(lines % (subject.encode(), len(payload), payload))
        answer = b""
        while answered_by not in answer:
            part = connection.recv(4096)
            assert part, answer
            answer += part
        return answer


def _check_make(text: str) -> None:
    """Have make print the commands, and the tools read the arguments in them."""
    from tools.benchmarks import __main__ as benchmarks
    from tools.faults import __main__ as faults

    # Without the variables of a `make test ARGS=...` that runs this.
    environment = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEOVERRIDES")}
    environment["MAKEFLAGS"] = "n"
    for line in filter(None, text.splitlines()):
        ran = subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        for tool, options in (("faults", faults._options), ("benchmarks", benchmarks._options)):
            for arguments in re.findall(rf"-m tools\.{tool}(.*)", ran.stdout):
                options(arguments.split())


def _check_json(block: Block) -> None:
    """Have the code read each line as a frame, and write it again; or read it as a command."""
    for line in block.text.splitlines():
        value = json.loads(line)
        if "type" not in value:
            messages.decode_command(line.encode(), history=True, publish=True)
        elif value["type"] != "message":
            frame = msgspec.json.decode(line, type=Frame)
            assert json.loads(msgspec.json.encode(frame)) == value


def _check_http(block: Block) -> None:
    """Have the code read the body of a POST."""
    head, _, body = block.text.partition("\n\n")
    start, *headers = head.splitlines()
    method, path = start.split()
    assert (method, headers) == ("POST", ["Content-Type: application/json"])
    action: Any = path.removeprefix("/nats/")
    if action in ("publish", "request"):
        decode_publish(body.encode(), action)
    else:
        assert messages.decode_command(body.encode(), action).session


def _check_nginx(block: Block) -> None:
    """Look each line up in the configurations behind which the tests run."""
    files = (ROOT / "docs" / "proxies").glob("nginx*.conf")
    known = [line.strip() for file in files for line in file.read_text().splitlines()]
    assert [line for line in block.text.splitlines() if line.strip() not in known] == []


def links(page: str) -> Iterator[tuple[str, str]]:
    """Return each link of a page to a file here: the path, and the anchor."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http:", "https:")):
            path, _, anchor = target.partition("#")
            yield path, anchor
