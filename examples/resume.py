"""A log by the browser's own EventSource: the last ten lines first, and none missed while it was disconnected.

Run: sanic examples.resume:app
Try: python examples/streams.py; open http://127.0.0.1:8000; python examples/publish.py log.web Started
"""

from sanic import HTTPResponse, Request, Sanic, html

from sanic_nats_bridge import NatsBridge

PAGE = """<!doctype html>
<title>Log</title>
<p id="state">Connecting</p>
<ol></ol>
<script type="module">
  const lines = document.querySelector("ol");
  const show = (text) => { document.querySelector("#state").textContent = text; };
  const query = new URLSearchParams({ subjects: "log.*", from: JSON.stringify({ last: 10 }) });
  // Each message has an id. The browser sends the last one when it reconnects, and gets what it has missed.
  const events = new EventSource(`/nats/events?${query}`);

  events.onmessage = ({ data }) => {
    const row = document.createElement("li");
    row.textContent = JSON.parse(data).data;
    lines.append(row);
  };
  events.addEventListener("caught_up", () => show("Live"));
  // It was disconnected for too long: the last ten lines follow again.
  events.addEventListener("gap", () => lines.replaceChildren());
  events.addEventListener("reply", ({ data }) => {
    const { success, message } = JSON.parse(data);
    if (!success) show(message);
  });
  events.addEventListener("close", ({ data }) => {
    if (!JSON.parse(data).reconnect) events.close();
  });
  events.onerror = () => show(events.readyState === EventSource.CLOSED ? "Closed" : "Reconnecting");
</script>
"""

app = Sanic("resume")
NatsBridge(app, subscribe=["log.*"], history=["log.*"], streams={"LOG": None})


@app.get("/")
async def index(_: Request) -> HTTPResponse:
    """Serve the page."""
    return html(PAGE)
