import gzip
import importlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sanic import HTTPResponse, Request, Sanic
from sanic.response import html

import sanic_nats_bridge
from sanic_nats_bridge.routes import client
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, Bridge, ServerName, running
from tests.support.raw import raw_connection

FOLDER = Path(sanic_nats_bridge.__file__).parent / "browser"
ALLOWED = "https://app.example"
OTHER = "0123456789abcdef"
"""The version of a module in another release."""
BROTLI: Any = importlib.import_module("brotli")  # it has no types
CODINGS = {"br": BROTLI.decompress, "gzip": gzip.decompress, "identity": bytes}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture(params=["/nats", ""], ids=["prefix", "no prefix"])
async def bridge(request: pytest.FixtureRequest, shared_nats: NatsServer, server: ServerName) -> AsyncIterator[Bridge]:
    async with running(
        servers=shared_nats.url, subscribe=["a"], prefix=request.param, allowed_origins=ALLOWED, server=server
    ) as served:  # fmt: skip
        yield served


async def ask(bridge: Bridge, method: str, url: str, **headers: str) -> tuple[int, Any, bytes]:
    """Send a request, and return the answer as it is, without decompressing it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as http,
        http.request(method, url, headers=named, skip_auto_headers=["Accept-Encoding"]) as response,
    ):
        return response.status, response.headers, await response.read()


async def addresses(bridge: Bridge) -> dict[str, str]:
    """Return the addresses of both modules, with their ``Cache-Control``."""
    versioned = bridge.url.removesuffix(bridge.prefix) + bridge.extension.client_url
    (share,) = re.findall(rb'import\("\./(share-\w+\.js)"\)', (await ask(bridge, "GET", versioned))[2])
    fixed = {f"{bridge.url}/{name}": "no-cache" for name in ("client.js", "share.js")}
    immutable = "public, max-age=31536000, immutable"
    return fixed | {versioned: immutable, f"{bridge.url}/{share.decode()}": immutable}


def varies(headers: Any) -> list[str]:
    return sorted(word.strip().lower() for value in headers.getall("Vary") for word in value.split(","))


async def test_modules_are_served_at_fixed_and_versioned_urls(bridge: Bridge) -> None:
    assert re.fullmatch(rf"{bridge.prefix}/client-[0-9a-f]{{16}}\.js", bridge.extension.client_url)
    for url, caching in (await addresses(bridge)).items():
        etags = set()
        for coding, decompress in CODINGS.items():
            status, headers, body = await ask(bridge, "GET", url, Accept_Encoding=coding)
            assert status == 200
            assert headers["Content-Type"] == "text/javascript; charset=utf-8"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == caching
            assert headers.get("Content-Encoding", "identity") == coding
            assert headers["Content-Length"] == str(len(body))
            assert varies(headers) == ["accept-encoding", "origin"]
            assert "Access-Control-Allow-Origin" not in headers
            etags.add(headers["ETag"])
            assert re.fullmatch(r'"[0-9a-f]{32}"', headers["ETag"])
            assert decompress(body) == (await ask(bridge, "GET", url))[2]
        assert len(etags) == 3


async def test_head_returns_headers_of_get_without_body(bridge: Bridge) -> None:
    for url in await addresses(bridge):
        for coding in CODINGS:
            status, headers, body = await ask(bridge, "HEAD", url, Accept_Encoding=coding)
            _, expected, _ = await ask(bridge, "GET", url, Accept_Encoding=coding)
            assert (status, body) == (200, b"")
            for name in ("Content-Type", "Content-Length", "Content-Encoding", "ETag", "Cache-Control"):
                assert headers.get(name) == expected.get(name), name
            assert varies(headers) == varies(expected)


async def test_compressed_modules_fit_size_budget(bridge: Bridge) -> None:
    # History is 1,430 B of the client, and publishing 600 B, because such pages would wait for one more request.
    for name, budget in {"client.js": 10_240, "share.js": 3072}.items():
        _, headers, body = await ask(bridge, "GET", f"{bridge.url}/{name}", Accept_Encoding="gzip")
        assert headers["Content-Encoding"] == "gzip"
        assert len(body) <= budget
        _, headers, smaller = await ask(bridge, "GET", f"{bridge.url}/{name}", Accept_Encoding="gzip, deflate, br")
        assert headers["Content-Encoding"] == "br"
        assert len(smaller) < len(body)


async def test_matching_etag_returns_304(bridge: Bridge) -> None:
    for url, caching in (await addresses(bridge)).items():
        etags = {
            coding: (await ask(bridge, "GET", url, Accept_Encoding=coding))[1]["ETag"] for coding in CODINGS
        }  # fmt: skip
        for coding, etag in etags.items():
            for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
                for method in ("GET", "HEAD"):
                    status, headers, body = await ask(
                        bridge, method, url, If_None_Match=known, Accept_Encoding=coding
                    )  # fmt: skip
                    assert (status, body) == (304, b"")
                    assert (headers["ETag"], headers["Cache-Control"]) == (etag, caching)
                    assert varies(headers) == ["accept-encoding", "origin"]
                    assert "Content-Encoding" not in headers
            others = [other for other in etags.values() if other != etag]
            for unknown in (*others, '"other"', etag.strip('"'), ""):
                status, headers, _ = await ask(bridge, "GET", url, If_None_Match=unknown, Accept_Encoding=coding)
                assert (status, headers["ETag"]) == (200, etag)


async def test_client_without_accept_encoding_gets_uncompressed_module(bridge: Bridge) -> None:
    path = f"{bridge.prefix}/client.js"
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    async with raw_connection(bridge.port, request) as (reader, _):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"content-encoding" not in head.lower()
    assert body == (await ask(bridge, "GET", f"{bridge.url}/client.js", Accept_Encoding="identity"))[2]


async def test_only_allowed_origins_get_cors_headers_with_modules(bridge: Bridge) -> None:
    for url in await addresses(bridge):
        status, headers, _ = await ask(bridge, "GET", url, Origin=ALLOWED, Sec_Fetch_Site="cross-site")
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, ALLOWED)
        assert varies(headers) == ["accept-encoding", "origin"]
        status, headers, _ = await ask(bridge, "GET", url, Origin="https://evil.example", Sec_Fetch_Site="cross-site")
        # A browser runs no module without the header, unless it takes the page's origin for that of the module.
        assert (status, headers.get("Access-Control-Allow-Origin")) == (200, None)
        for site in ("same-origin", "none"):
            assert (await ask(bridge, "GET", url, Sec_Fetch_Site=site))[0] == 200


async def test_post_returns_405(bridge: Bridge) -> None:
    for url in (*await addresses(bridge), f"{bridge.url}/client-{OTHER}.js"):
        assert (await ask(bridge, "POST", url))[0] == 405


async def test_version_of_another_release_is_current_module_without_long_caching(bridge: Bridge) -> None:
    for url, caching in (await addresses(bridge)).items():
        if caching == "no-cache":
            continue
        other = re.sub(r"[0-9a-f]{16}\.js$", f"{OTHER}.js", url)
        for coding in CODINGS:
            for method in ("GET", "HEAD"):
                status, headers, body = await ask(bridge, method, other, Accept_Encoding=coding)
                expected, current, text = await ask(bridge, method, url, Accept_Encoding=coding)
                assert (status, body) == (expected, text) == (200, b"" if method == "HEAD" else text)
                assert headers["Cache-Control"] == "no-cache"
                for name in ("Content-Type", "Content-Length", "Content-Encoding", "ETag", "Vary", "Sanic-Nats-Bridge"):
                    assert headers.get(name) == current.get(name), name
            status, headers, _ = await ask(
                bridge, "GET", other, If_None_Match=current["ETag"], Accept_Encoding=coding
            )  # fmt: skip
            assert (status, headers["Cache-Control"]) == (304, "no-cache")
        status, headers, _ = await ask(bridge, "GET", other, Origin=ALLOWED, Sec_Fetch_Site="cross-site")
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, ALLOWED)
        assert (await ask(bridge, "GET", other, Origin="https://evil.example"))[0] == 200


async def test_client_of_another_release_imports_current_share_module(bridge: Bridge) -> None:
    imports = re.compile(rb'import\("\./(share[\w-]*\.js)"\)')
    (share,) = imports.findall((await ask(bridge, "GET", f"{bridge.url}/client-{OTHER}.js"))[2])
    status, headers, _ = await ask(bridge, "GET", f"{bridge.url}/{share.decode()}")
    assert (status, headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
    assert imports.findall((await ask(bridge, "GET", f"{bridge.url}/client.js"))[2]) == [b"share.js"]


async def test_names_that_no_release_has_are_not_found(bridge: Bridge) -> None:
    for name in (
        "client-",
        "client-012",
        "share-0123456789ABCDEF",
        f"other-{OTHER}",
        f"client-{OTHER}0",
        f"client.{OTHER}",
    ):
        assert (await ask(bridge, "GET", f"{bridge.url}/{name}.js"))[0] == 404, name
    assert (await ask(bridge, "GET", f"{bridge.url}/client-{OTHER}.css"))[0] == 404


CATCH_ALL = ("/<path:path>", "/<name>", "/<name:ext>", "/<name:[^/]+>", "/nats/<name>", "/nats/<path:path>")


@pytest.mark.parametrize("prefix", ["/nats", ""])
async def test_catch_all_route_of_app_does_not_get_requests_for_other_release(
    shared_nats: NatsServer, prefix: str
) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        async def frontend(request: Request, **_: str) -> HTTPResponse:
            return html("the frontend")

        for number, route in enumerate(CATCH_ALL):
            app.add_route(frontend, route, name=f"frontend{number}")

    async with running(servers=shared_nats.url, prefix=prefix, prepare=prepare) as bridge:
        for name in ("client", "share"):
            status, headers, _ = await ask(bridge, "GET", f"{bridge.url}/{name}-{OTHER}.js")
            assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
        for name in ("index", "client-012.js", "client-0123456789abcdef0123.js"):
            assert (await ask(bridge, "GET", f"{bridge.url}/{name}"))[2] == b"the frontend"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the modules to a folder in which a test may change them."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "browser"))
    monkeypatch.setattr(client, "_FOLDER", folder)
    monkeypatch.setattr(client, "_modules", client._modules.__wrapped__)
    return folder


def test_versioned_name_changes_with_either_module(source: Path) -> None:
    names = {client.versioned_name()}
    for name in ("client.js", "share.js"):
        with (source / name).open("a") as module:
            module.write("let changed;\n")
        names.add(client.versioned_name())
    assert len(names) == 3
    assert client.versioned_name() in names


def test_versioned_client_imports_share_module_of_same_version(source: Path) -> None:
    (source / "share.js").write_text("export const changed = true;\n")
    versioned = client._modules().versioned
    (share,) = (name for name in versioned if name.startswith("share-"))
    assert f'import("./{share}")'.encode() in versioned[client.versioned_name()].select(()).body
    assert versioned[share].select(()).body == b"export const changed=true;\n"
    assert b'import("./share.js")' in client._modules().fixed["client.js"].select(()).body


@pytest.mark.parametrize(
    ("written", "served"),
    [
        ("/** A. */\nlet a;\n", "let a;\n"),
        ("  /**\n   * A.\n   */\n  a() {}\n", "a(){}\n"),
        ("/** A. */\n\nlet a;\n", "let a;\n"),
        ("let a; /** A. */\n", "let a;\n"),
        ("/** A. */ (a)\n/** B. */\nlet b;\n", "(a)\nlet b;\n"),
        ("/* A. */\nlet a;\n", "/*A.*/\nlet a;\n"),
        ("/** A * / ** b **/\nlet a;\n", "let a;\n"),
        ("/** A. */\n/** B. */\nlet a;\n", "let a;\n"),
        ("// A.\nlet a;\n  // B.\n", "let a;\n"),
        ("let a; // A\n", "let a;\n"),
        ("{\n  let a;\n\n    // A.\n\n\tlet b;\n}\n", "{\nlet a;\nlet b;\n}\n"),
        ("let a = '//a'; // 'A'\nlet b = `http://b`;\n", "let a='//a';\nlet b=`http://b`;\n"),
        ("let a = b ? 'c , d' : / (e)/;\n", "let a=b?'c , d':/ (e)/;\n"),
        ("class A {\n  #b = 1;\n  c = this.#long + this.#long;\n}\n", "class A{\n#b=1;\nc=this.#a+this.#a;\n}\n"),
    ],
)
def test_comments_and_spaces_are_stripped(source: Path, written: str, served: str) -> None:
    (source / "share.js").write_text(written)
    assert client._modules().fixed["share.js"].select(()).body.decode() == served
