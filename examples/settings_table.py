"""A table of the keys in a NATS key-value bucket, which changes in place.

Run: sanic examples.settings_table:app
Try: python examples/streams.py; open http://127.0.0.1:8000; python examples/publish.py '$KV.settings.theme' '"dark"'
"""

from sanic import HTTPResponse, Request, Sanic, empty, html

from sanic_nats_bridge import NatsBridge, Permissions

PAGE = """<!doctype html>
<title>Settings</title>
<table></table>
<output></output>
<script type="module">
  import { connect } from "/nats/client.js";

  const table = document.querySelector("table");
  const show = (text) => { document.querySelector("output").textContent = text; };
  const rows = new Map();
  const nats = connect();

  // The value of each key first, then the changes.
  nats.subscribe("settings.*", { from: "last_per_subject" }, (value, { subject, operation }) => {
    const key = subject.slice("settings.".length);
    rows.get(key)?.remove();
    rows.delete(key);
    if (operation) return; // deleted, or expired
    const row = table.insertRow();
    row.insertCell().textContent = key;
    row.insertCell().textContent = value;
    const button = row.insertCell().appendChild(document.createElement("button"));
    button.textContent = "Delete";
    button.onclick = () => fetch(`/settings/${key}`, { method: "DELETE" });
    rows.set(key, row);
  }).caughtUp.then(() => show("Live"), (error) => show(error.message));
  // The page was disconnected for too long, and all values follow again.
  nats.addEventListener("gap", () => {
    table.replaceChildren();
    rows.clear();
  });
</script>
"""


def permissions(_: Request) -> Permissions:
    """Let every client read the bucket, under a name without ``$KV``."""
    bucket = "$KV.settings.*"
    return Permissions(subscribe=[bucket], history=[bucket], aliases={"settings.": "$KV.settings."})


app = Sanic("settings_table")
NatsBridge(app, permissions=permissions, streams={"KV_settings": None})


@app.get("/")
async def index(_: Request) -> HTTPResponse:
    """Serve the page."""
    return html(PAGE)


@app.delete(r"/settings/<key:[\w-]{1,50}>")
async def delete(_: Request, key: str, bridge: NatsBridge) -> HTTPResponse:
    """Delete a key. Its marker in the bucket reaches every page."""
    await bridge.publish(f"$KV.settings.{key}", headers={"KV-Operation": "DEL"}, ack=True)
    return empty(204)
