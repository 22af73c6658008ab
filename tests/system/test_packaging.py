"""The distributions: built without a warning, complete, and able to run an app on their own."""

import asyncio
import email
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

import aiohttp
import pytest
from readme_renderer import markdown
from websockets.asyncio.client import connect

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Publisher, free_port, until
from tests.support.process import ended, listening

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_SOURCE = (".*", "node_modules", "__pycache__", "*.egg-info", "build", "dist", "site")
DEFAULT_SERVER = "nats://127.0.0.1:4222"
START_SECONDS = 60


@dataclass
class Distributions:
    sdist: Path
    wheel: Path
    output: str

    @property
    def metadata(self) -> Message:
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            return email.message_from_string(archive.read(name).decode())

    @property
    def description(self) -> str:
        payload = self.metadata.get_payload()
        assert isinstance(payload, str)
        return payload


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Build both in a copy of the project, because setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "project", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [sys.executable, "-W", "default", "-m", "build", "--no-isolation", "--outdir", folder],
        cwd=folder / "project",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Distributions(sdist, wheel, result.stdout)


@pytest.fixture(scope="module")
def python(built: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment that shares the libraries of this one; return its Python."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    executable = folder / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", built.wheel)
    subprocess.run([sys.executable, "-m", "pip", "--python", executable, *install], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file comes last, and .pth files in it, as of an editable install, have no effect.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    return executable


def source_files() -> set[str]:
    package = ROOT / "sanic_nats_bridge"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_build_emits_no_warnings(built: Distributions) -> None:
    complaints = [
        line for line in built.output.splitlines() if re.search("warning|deprecat|ignored", line, re.IGNORECASE)
    ]
    assert complaints == []
    assert "Successfully built" in built.output


def test_wheel_contains_exactly_package_files(built: Distributions) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == source_files()
    assert {f"sanic_nats_bridge/{name}" for name in ("py.typed", "browser/client.js", "browser/client.d.ts",
            "browser/package.json")} <= packaged  # fmt: skip
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_sdist_contains_exactly_sources_and_build_files(built: Distributions) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()} - {""}
    files = {name for name in names if Path(name).suffix or Path(name).name == "LICENSE"}
    generated = {"PKG-INFO"} | {name for name in names if ".egg-info" in name}
    stated = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "docs/pypi.md", "pyproject.toml", "setup.cfg"}
    assert files - generated == source_files() | stated


def test_metadata_matches_pyproject(built: Distributions) -> None:
    metadata = built.metadata
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == PROJECT["requires-python"] == ">=3.11"
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    # No public address of the project is known.
    assert metadata["Home-page"] is None
    assert metadata["Project-URL"] is None


def test_all_versions_match(built: Distributions, python: Path, tmp_path: Path) -> None:
    code = "import sanic_nats_bridge as it; print(it.__version__, it.__file__)"
    shown = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    npm = json.loads((ROOT / "sanic_nats_bridge" / "browser" / "package.json").read_text())
    assert {shown[0], npm["version"], built.metadata["Version"]} == {PROJECT["version"]}
    assert Path(shown[1]).is_relative_to(python.parents[1])


def test_twine_accepts_sdist_and_wheel(built: Distributions) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(built.sdist), str(built.wheel)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("PASSED") == 2


class Targets(HTMLParser):
    """The addresses of the links and pictures of a page, other than those within it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = [value or "" for name, value in attrs if name in ("href", "src", "srcset")]
        self.found += [value for value in values if not value.startswith("#user-content-")]


def test_long_description_contains_only_absolute_links(built: Distributions) -> None:
    page = markdown.render(built.description)
    assert page is not None
    found = Targets(page).found
    assert "https://nats.io" in found
    assert [target for target in found if not target.startswith("https://")] == []
    assert Targets(markdown.render("[a](docs/a.md) ![b](b.png)") or "").found == ["docs/a.md", "b.png"]


def first_app(text: str) -> str:
    """Return the first Python code in a document that makes an app with a bridge."""
    blocks: list[str] = re.findall(r"```python[^\n]*\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if "NatsBridge(" in block)


@pytest.fixture(params=["README.md", "long description"])
def document(request: pytest.FixtureRequest, built: Distributions) -> str:
    return (ROOT / "README.md").read_text() if request.param == "README.md" else built.description


@pytest.fixture
async def served(document: str, python: Path, shared_nats: NatsServer, tmp_path: Path) -> AsyncIterator[int]:
    """Serve the first app of the document by the installed wheel, from an empty folder; its port."""
    source = first_app(document).replace(DEFAULT_SERVER, shared_nats.url)
    (tmp_path / "server.py").write_text(source)
    pages = re.findall(r"```html[^\n]*\n(.*?)```", document, re.DOTALL)
    (tmp_path / "index.html").write_text(pages[0] if pages else "")
    port = free_port()
    command = ("-m", "sanic", "server:app", "--port", str(port), "--single-process")
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            python, *command, cwd=tmp_path, stdout=output, stderr=output,
            env=os.environ | {"SANIC_NATS_BRIDGE_SERVERS": shared_nats.url},
        )  # fmt: skip
    try:
        await until(lambda: b"Worker ready" in log.read_bytes() or process.returncode is not None, START_SECONDS)
        assert process.returncode is None, log.read_text()
        await listening(port)
        yield port
    finally:
        await ended(process)


async def test_first_app_of_document_runs_from_wheel(served: int, document: str, publisher: Publisher) -> None:
    allowed = re.search(r"subscribe=\[\"([^\"]+)\"", first_app(document))
    assert allowed is not None
    pattern = allowed[1]
    subject = pattern.replace(">", publisher.base).replace("*", publisher.base)
    async with asyncio.timeout(START_SECONDS), connect(f"ws://127.0.0.1:{served}/nats/stream") as websocket:
        assert json.loads(await websocket.recv())["type"] == "welcome"
        await websocket.send(json.dumps({"action": "subscribe", "subjects": [pattern]}))
        frame = json.loads(await websocket.recv())
        while frame["type"] != "reply":
            frame = json.loads(await websocket.recv())
        assert frame["success"], frame
        # Without NATS the subscription becomes active later, and a status announces it.
        while not (frame.get("active") or frame.get("nats") == "connected"):
            frame = json.loads(await websocket.recv())
        await publisher.send(subject, b'{"item":"tea"}')
        while frame["type"] != "message" or frame["subject"] != subject:
            frame = json.loads(await websocket.recv())
        assert frame["data"] == {"item": "tea"}
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{served}/nats/client.js") as response:
        assert (response.status, response.content_type) == (200, "text/javascript")
        assert re.search(r"^export .*\bconnect\b", await response.text(), re.MULTILINE)
