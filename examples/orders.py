"""An HTTP handler that publishes, and a page that receives what it published.

Run: sanic examples.orders:app
Try: open http://127.0.0.1:8000 in two tabs and order something
"""

from sanic import HTTPResponse, Request, Sanic, empty, html
from sanic.exceptions import InvalidUsage

from sanic_nats_bridge import NatsBridge

PAGE = """<!doctype html>
<title>Orders</title>
<form><input name="item" aria-label="Item" required> <button>Order</button> <output></output></form>
<ul></ul>
<script type="module">
  import { connect } from "/nats/client.js";

  const form = document.querySelector("form");
  const show = (text) => { form.querySelector("output").textContent = text; };
  connect().subscribe("orders.*", ({ item }) => {
    const row = document.createElement("li");
    row.textContent = item;
    document.querySelector("ul").prepend(row);
  }).ready.then(() => show("Live"), (error) => show(error.message));

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const response = await fetch("/orders", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ item: form.item.value }),
    });
    show(response.ok ? "Ordered" : `Failed: ${response.status}`);
  });
</script>
"""

app = Sanic("orders")
NatsBridge(app, subscribe=["orders.*"])


@app.get("/")
async def index(_: Request) -> HTTPResponse:
    """Serve the page."""
    return html(PAGE)


@app.post("/orders")
async def order(request: Request, bridge: NatsBridge) -> HTTPResponse:
    """Publish an order. While NATS is disconnected the answer is 503."""
    # Pages of other origins can't send this type without asking first (CORS).
    if request.content_type != "application/json":
        return empty(415)
    item = request.json.get("item") if isinstance(request.json, dict) else None
    if not isinstance(item, str) or not 1 <= len(item) <= 100:
        raise InvalidUsage("item must be a string of 1 to 100 characters")
    await bridge.publish("orders.new", {"item": item})
    return empty(202)
