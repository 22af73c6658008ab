"""Live prices by the browser's own EventSource, without any client library.

Run: sanic examples.event_source:app
Try: open http://127.0.0.1:8000; python examples/publish.py prices.tea '{"euros": 3}'
"""

from sanic import HTTPResponse, Request, Sanic, html

from sanic_nats_bridge import NatsBridge

PAGE = """<!doctype html>
<title>Prices</title>
<p id="state">Connecting</p>
<ul id="prices"></ul>
<script type="module">
  const show = (text) => { document.querySelector("#state").textContent = text; };
  const events = new EventSource(`/nats/events?subjects=${encodeURIComponent("prices.*")}`);

  // Messages have no event name; all other frames have their type as the name.
  events.onmessage = ({ data }) => {
    const { subject, data: price } = JSON.parse(data);
    const row = document.getElementById(subject) ?? document.createElement("li");
    row.id = subject;
    row.textContent = `${subject.slice("prices.".length)}: ${price.euros}`;
    document.querySelector("#prices").append(row);
  };
  events.addEventListener("reply", ({ data }) => {
    const { success, message } = JSON.parse(data);
    show(success ? "Live" : message);
  });
  events.addEventListener("gap", () => show("Some prices were missed"));
  events.addEventListener("close", ({ data }) => {
    if (!JSON.parse(data).reconnect) events.close();
  });
  // The browser reconnects unless the answer was an HTTP error.
  events.onerror = () => show(events.readyState === EventSource.CLOSED ? "Closed" : "Reconnecting");
</script>
"""

app = Sanic("event_source")
NatsBridge(app, subscribe=["prices.*"])


@app.get("/")
async def index(_: Request) -> HTTPResponse:
    """Serve the page."""
    return html(PAGE)
