"""A chat whose browsers publish: each message is checked, has its author's name, and is stored once.

Run: sanic examples.chat:app --single-process
Try: python examples/streams.py; open http://127.0.0.1:8000/?name=ada and /?name=bob, and write something
"""

from msgspec import Struct
from sanic import HTTPResponse, Request, Sanic, html

from sanic_nats_bridge import NatsBridge, Permissions, Publication

PAGE = """<!doctype html>
<title>Chat</title>
<ul></ul>
<form><input name="text" aria-label="Message" required> <button>Send</button> <output></output></form>
<script type="module">
  import { connect } from "/nats/client.js";

  const form = document.querySelector("form");
  const show = (text) => { form.querySelector("output").textContent = text; };
  const nats = connect({ credentials: () => location.search.slice(1) });
  nats.subscribe("rooms.lobby", { from: { last: 20 } }, ({ text }, { headers }) => {
    const row = document.createElement("li");
    // The bridge has set the author. The text of other people is never HTML.
    row.textContent = `${decodeURIComponent(headers?.["Bridge-Identity"]?.[0] ?? "?")}: ${text}`;
    document.querySelector("ul").append(row);
  }).ready.then(() => show("Live"), (error) => show(error.message));

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = form.text.value;
    form.reset();
    show("Sending");
    try {
      // Waits while the browser is disconnected, and is stored once however often the connection is cut.
      await nats.publish("rooms.lobby", { text }, { ack: true });
      show("Sent");
    } catch (error) {
      form.text.value ||= text; // to be corrected, or sent again
      show(error.code === "publish.unknown" ? "It may have been sent" : `Not sent: ${error.message}`);
    }
  });
</script>
"""
MAX_CHARACTERS = 500


class Say(Struct):
    """A message of a browser. Data of any other form is refused before `say` gets it."""

    text: str


def permissions(request: Request) -> Permissions:
    """Return what the person may do. A real chat has a login in place of the name in the address."""
    name = request.args.get("name", "guest")
    return Permissions(subscribe=["rooms.*"], history=["rooms.*"], publish=["rooms.*"], identity=name)


app = Sanic("chat")
bridge = NatsBridge(app, permissions=permissions, streams={"ROOMS": None}, expose_headers=["Bridge-Identity"])


@bridge.on_publish("rooms.*", schema=Say)
def say(publication: Publication[Say]) -> None:
    """Refuse a message; its author sees the text of the error."""
    if not 0 < len(publication.data.text.strip()) <= MAX_CHARACTERS:
        raise ValueError(f"A message has 1 to {MAX_CHARACTERS} characters")


@app.get("/")
async def index(_: Request) -> HTTPResponse:
    """Serve the page."""
    return html(PAGE)
