"""The client is written to its types, these are those of the protocol, and the npm package is complete."""

import configparser
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
from sanic_nats_bridge.routes import client
from tests.support.node_program import NODE

ROOT = Path(__file__).parents[2]
BROWSER = Path(sanic_nats_bridge.__file__).parent / "browser"
DECLARATIONS = (BROWSER / "client.d.ts").read_text()
STRUCTS = [
    protocol.Command,
    protocol.Welcome,
    protocol.Reply,
    protocol.CaughtUp,
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
orders.caughtUp.then(({ replayed, recovered }) => recovered || replayed.toFixed(), (error: NatsError) => error.code);
const prefs = client.subscribe<string>("prefs.>", { from: "last_per_subject", after: "x" }, (data, message) => {
  data.length;
  message.operation === "delete" || message.id?.length;
});
for (const from of ["new", "all", { last: 10 }] as const) client.subscribe("a", { from });
client.addEventListener("caught_up", ({ detail }) => detail.subjects.length + detail.replayed);
client.publish("rooms.7.say", { text: "hi" }, { ack: true, headers: { Trace: ["x"] } }).then(
  ({ stream, sequence, duplicate }) => stream ?? sequence?.toFixed() ?? duplicate,
  ({ code, description, retry }: NatsError) => code.length + (description?.length ?? 0) + (retry ?? 0),
);
client.publish("a");
client.request<{ price: number }>("svc.price", { sku: 7 }, { timeout: 2 }).then(({ data }) => data.price.toFixed());
client.send({ action: "publish", subject: "a", data: "aGk=", encoding: "base64" });
async function all(): Promise<Message | undefined> {
  for await (const message of client.subscribe("prices.*")) return message;
}
// @ts-expect-error
connect({ transports: ["carrier pigeon"] });
// @ts-expect-error
client.addEventListener("nothing", () => {});
// @ts-expect-error
orders.pattern = "x";
// @ts-expect-error
client.subscribe("a", { from: "old" });
// @ts-expect-error
client.publish("a", 1, { encoding: "utf-8" });
// @ts-expect-error
client.request("a", 1, { ack: true });
"""


def typescript(schema: dict[str, Any]) -> str:
    """Return the type that a JSON schema describes."""
    if not schema:  # JSON of any kind
        return "any"
    if "anyOf" in schema:
        return " | ".join(map(typescript, schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if schema["type"] == "array":
        return f"({typescript(schema['items'])})[]"
    if schema["type"] != "object":
        return SIMPLE[schema["type"]]
    fields = [
        # A field with a default is always sent. An optional field has none.
        f"{name}{'' if name in schema.get('required', []) or 'default' in field else '?'}: {typescript(field)};"
        for name, field in schema.get("properties", {}).items()
    ]
    return "{ " + " ".join(fields) + " }"


def generated() -> str:
    _, components = msgspec.json.schema_components(STRUCTS)
    # Its action is a string, so that an unknown one can be answered.
    components["Command"]["properties"]["action"] = msgspec.json.schema(protocol.Action)
    last = components.pop("Last")
    choices = components["Command"]["properties"]["from"]["anyOf"]
    components["Command"]["properties"]["from"] = {"anyOf": [last if "$ref" in each else each for each in choices]}
    lines = ['import type * as Client from "sanic-nats-bridge";', SAME]
    for name, schema in components.items():
        lines.append(f"const {name.lower()}: Equal<Client.{name}, {typescript(schema)}> = true;")
    names = ", ".join(f'"{struct.__struct_config__.tag}"' for struct in STRUCTS[1:])
    lines.append(f'const types: Same<Client.Frame["type"], [{names}, "message"][number]> = true;')
    return "\n".join(lines)


def tsc(folder: Path, *arguments: str | Path) -> str:
    """Run the TypeScript compiler, and return its errors."""
    command = NODE / "node_modules" / ".bin" / "tsc"
    assert command.exists(), "make test installs typescript"
    options = ["--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom,dom.iterable"]
    ran = subprocess.run(
        [command, *options, "--types", "", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (ran.returncode == 0) == (ran.stdout == ""), ran
    return ran.stdout


def use_package(folder: Path, source: str, declarations: str = DECLARATIONS) -> Path:
    """Write a program that imports the package as it would be published, and return its path."""
    package = folder / "node_modules" / "sanic-nats-bridge"
    shutil.copytree(BROWSER, package)
    (package / "client.d.ts").write_text(declarations)
    (folder / "source.ts").write_text(source)
    return folder / "source.ts"


def compile_programs(folder: Path, *programs: Path) -> str:
    return tsc(folder, "--noEmit", "--exactOptionalPropertyTypes", *programs)


def check_client(folder: Path, *packages: Path) -> str:
    """Check the JavaScript itself by its JSDoc, and return the errors."""
    strict = ("--noUnusedLocals", "--noUnusedParameters", "--noImplicitReturns", "--noFallthroughCasesInSwitch")
    modules = [package / name for package in packages for name in ("client.js", "share.js")]
    return tsc(folder, "--noEmit", "--checkJs", *strict, *modules)


def changed(declared: str, otherwise: str) -> str:
    assert declared in DECLARATIONS
    return DECLARATIONS.replace(declared, otherwise, 1)


@pytest.mark.parametrize("source", [generated(), USE], ids=["protocol", "use"])
def test_type_declarations_match_protocol_and_usage(tmp_path: Path, source: str) -> None:
    assert compile_programs(tmp_path, use_package(tmp_path, source)) == ""


def test_type_declarations_that_differ_from_protocol_are_detected(tmp_path: Path) -> None:
    differences = [
        ("heartbeat: number;", "heartbeat: string;"),
        ("  retry?: number;\n}\n\nexport type Frame", "}\n\nexport type Frame"),
        ("lost: number | null;", "lost: number;"),
        ('| "internal"', ""),
        ("  after?: string;\n  from?", "  from?"),
        ("  code: number;\n", "  code: number;\n  more?: string;\n"),
        ("| Heartbeat |", "|"),
    ]
    programs = [
        use_package(tmp_path / str(number), generated(), changed(*difference))
        for number, difference in enumerate(differences)
    ]
    errors = compile_programs(tmp_path, *programs)
    for number, difference in enumerate(differences):
        assert re.search(rf"^{number}/source\.ts.* is not assignable to type", errors, re.MULTILINE), difference


def test_client_matches_its_type_declarations(tmp_path: Path) -> None:
    assert check_client(tmp_path, BROWSER) == ""


def test_client_that_differs_from_type_declarations_is_detected(tmp_path: Path) -> None:
    differences = [
        ("  close(): void;", "  close(): void;\n  more(): void;"),
        ("  readonly ready: Promise<Reply>;", "  readonly ready: Promise<string>;"),
        ("  send(command: Command | PublishCommand): Promise<Reply>;", "  send(command: Command): Reply;"),
        ("  readonly welcome: Welcome | null | undefined;", "  readonly welcome: Welcome;"),
        ('"connecting" | "subscribing" | "connected" | "waiting"', '"connecting" | "subscribing" | "connected"'),
        ('reason: "reconnect" }', 'reason: "other" }'),
        ("  timeout?: number;\n  /** Milliseconds until a better", "  /** Milliseconds until a better"),
        ("  close: { code?: number; reason: string; final: boolean };", "  close: { code: string };"),
        ("connect(options?: Options): Client;", "connect(options: string): Client;"),
    ]
    packages = []
    for number, difference in enumerate(differences):
        packages.append(Path(shutil.copytree(BROWSER, tmp_path / str(number))))
        (packages[-1] / "client.d.ts").write_text(changed(*difference))
    errors = check_client(tmp_path, *packages)
    for number, difference in enumerate(differences):
        assert re.search(rf"^{number}/client\.js", errors, re.MULTILINE), difference


def with_numbered_names(text: str) -> str:
    """Replace private names and constants, short or not, by numbers."""
    names: dict[str, str] = {}
    own = r"#[A-Za-z]\w*|\b[A-Z]+(?:_[A-Z]+)+\b|\b_[A-Za-z]{1,2}\b"
    return re.sub(own, lambda match: names.setdefault(match[0], f"#{len(names)}"), text)


def test_served_client_equals_source_but_for_comments_spaces_and_short_names(tmp_path: Path) -> None:
    # The compiler writes both without comments, and with the same spaces: a difference is one of code.
    paths = []
    for name, text in client._modules().fixed.items():
        for form, code in (("source", (BROWSER / name).read_bytes()), ("served", text.select(()).body)):
            paths.append(tmp_path / form / name)
            paths[-1].parent.mkdir(exist_ok=True)
            paths[-1].write_bytes(code)
    tsc(tmp_path, "--allowJs", "--noCheck", "--noResolve", "--removeComments", "--outDir", "out", *paths)
    for name in ("client.js", "share.js"):
        source, served = ((tmp_path / "out" / form / name).read_text() for form in ("source", "served"))
        source = source.replace('MODULE_URL = ""', "MODULE_URL = import.meta.url")
        assert with_numbered_names(source) == with_numbered_names(served)
        assert not re.findall(r"/\*\*|^//| //.*|^\s", (tmp_path / "served" / name).read_text(), re.MULTILINE)


def test_npm_package_is_complete_and_matches_project() -> None:
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


def test_python_package_ships_browser_client() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    shipped = setup["options.package_data"]["sanic_nats_bridge.browser"].split()
    assert {"*.js", "*.d.ts", "package.json"} <= set(shipped)


def test_readme_states_client_size_under_10_kb() -> None:
    # What is served is measured in the tests of the routes.
    said = re.search(r"under (\d+) KB gzipped", (ROOT / "README.md").read_text())
    assert said is not None
    assert said[1] == "10"


def test_client_imports_only_its_share_module() -> None:
    imports = r"^\s*import\b.*|\bimport\(.*?\)|\brequire\(.*?\)"
    found = {
        name: re.findall(imports, (BROWSER / name).read_text(), re.MULTILINE) for name in ("client.js", "share.js")
    }
    assert found == {"client.js": ['import("./share.js")'], "share.js": []}


def test_source_has_no_address_of_its_own() -> None:
    # A bundler would replace it by a path of its machine.
    assert "import.meta" not in (BROWSER / "client.js").read_text().replace("`import.meta.url`", "")
