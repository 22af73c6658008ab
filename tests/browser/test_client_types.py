"""The client's types are those of the protocol, and the npm package is whole."""

import configparser
import gzip
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sanic_nats_bridge
from sanic_nats_bridge.protocol import messages as protocol

ROOT = Path(__file__).parents[2]
BROWSER = Path(sanic_nats_bridge.__file__).parent / "browser"
NODE = Path(__file__).parents[1] / "support" / "node"
STRUCTS = [
    protocol.Command,
    protocol.Welcome,
    protocol.Reply,
    protocol.Gap,
    protocol.Unsubscribed,
    protocol.Status,
    protocol.Heartbeat,
    protocol.Close,
]
SIMPLE = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}

SAME = """
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
// An optional field that only one of them has would not show otherwise.
type Equal<A, B> = Same<A, B> & Same<Required<A>, Required<B>> & Same<keyof A, keyof B>;
"""

USE = """
import { connect, type Client, type Message, type NatsError } from "sanic-nats-bridge";
const client: Client = connect({ transports: ["sse"], share: "ada", credentials: async () => ({ token: "x" }) });
const silent = connect({ credentials: async () => {} });
const orders = client.subscribe<{ total: number }>("orders.>", (data, message) => {
  data.total.toFixed();
  message.subject.length;
});
orders.ready.then((reply) => reply.active, (error: NatsError) => error.code);
client.subscribe("a", null, (error) => error?.code.length);
client.addEventListener("status", ({ detail }) => detail.transport.length);
client.addEventListener("gap", ({ detail }) => detail.reason === "reconnect" || detail.reason === "slow_consumer");
async function all(): Promise<Message | undefined> {
  for await (const message of client.subscribe("prices.*")) return message;
}
// @ts-expect-error
connect({ transports: ["carrier pigeon"] });
// @ts-expect-error
client.addEventListener("nothing", () => {});
// @ts-expect-error
orders.pattern = "x";
"""


def typescript(schema: dict[str, Any]) -> str:
    """The type that a JSON schema describes."""
    if "anyOf" in schema:
        return " | ".join(map(typescript, schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if schema["type"] == "array":
        return f"({typescript(schema['items'])})[]"
    if schema["type"] != "object":
        return SIMPLE[schema["type"]]
    fields = [
        # What has a default is always sent; what may be left out has none.
        f"{name}{'' if name in schema.get('required', []) or 'default' in field else '?'}: {typescript(field)};"
        for name, field in schema.get("properties", {}).items()
    ]
    return "{ " + " ".join(fields) + " }"


def generated() -> str:
    _, components = msgspec.json.schema_components(STRUCTS)
    # Its action is text so that an unknown one can be answered.
    components["Command"]["properties"]["action"] = msgspec.json.schema(protocol.Action)
    lines = ['import type * as Client from "sanic-nats-bridge";', SAME]
    for name, schema in components.items():
        lines.append(f"const {name.lower()}: Equal<Client.{name}, {typescript(schema)}> = true;")
    names = ", ".join(f'"{struct.__struct_config__.tag}"' for struct in STRUCTS[1:])
    lines.append(f'const types: Same<Client.Frame["type"], [{names}, "message"][number]> = true;')
    return "\n".join(lines)


def compile_types(folder: Path, source: str, declarations: str | None = None) -> str:
    """Compile against the package as it would be published; what the compiler complains of."""
    tsc = NODE / "node_modules" / ".bin" / "tsc"
    assert tsc.exists(), "make test installs typescript"
    package = folder / "node_modules" / "sanic-nats-bridge"
    shutil.copytree(BROWSER, package)
    if declarations is not None:
        (package / "client.d.ts").write_text(declarations)
    (folder / "source.ts").write_text(source)
    options = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--module", "nodenext", "--target", "es2022"]
    options += ["--lib", "es2022,dom", "--types", ""]
    ran = subprocess.run([tsc, *options, "source.ts"], cwd=folder, capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) == (ran.stdout == ""), ran
    return ran.stdout


@pytest.mark.parametrize("source", [generated(), USE], ids=["protocol", "use"])
def test_the_types_are_those_of_the_protocol(tmp_path: Path, source: str) -> None:
    assert compile_types(tmp_path, source) == ""


@pytest.mark.parametrize(
    ("written", "drifted"),
    [
        ("heartbeat: number;", "heartbeat: string;"),
        ("  retry?: number;\n}\n\nexport type Frame", "}\n\nexport type Frame"),
        ("lost: number | null;", "lost: number;"),
        ('| "internal"', ""),
        ("  code: number;\n", "  code: number;\n  more?: string;\n"),
        ("| Heartbeat |", "|"),
    ],
)
def test_types_that_have_drifted_are_noticed(tmp_path: Path, written: str, drifted: str) -> None:
    declarations = (BROWSER / "client.d.ts").read_text()
    assert declarations.count(written) >= 1
    assert "is not assignable to type" in compile_types(
        tmp_path, generated(), declarations.replace(written, drifted, 1)
    )


def test_the_package_can_be_published() -> None:
    package = json.loads((BROWSER / "package.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (package["name"], package["version"], package["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
    entry = package["exports"]["."]
    assert {*package["files"], "package.json"} == {path.name for path in BROWSER.iterdir()}
    assert (BROWSER / entry["default"]).is_file()
    assert (BROWSER / entry["types"]).is_file()
    assert package["type"] == "module"
    assert "dependencies" not in package


def test_the_python_package_ships_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "browser/*" in setup["options.package_data"]["sanic_nats_bridge"].split()


def test_the_client_is_small_and_needs_nothing() -> None:
    source = (BROWSER / "client.js").read_bytes()
    size = len(gzip.compress(source, 9))
    assert size < 6 * 1024
    said = re.search(r"under (\d+) KB gzipped", (ROOT / "README.md").read_text())
    assert said is not None
    assert said[1] == "6"
    assert re.findall(rb"^\s*import\b|\bimport\(|\brequire\(", source, re.MULTILINE) == []
