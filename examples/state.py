"""A page that the server renders with its state, and that continues from there without a missed change.

Run: sanic examples.state:app --single-process
Try: python examples/streams.py; open http://127.0.0.1:8000 in two tabs and sell something
"""

from sanic import HTTPResponse, Request, Sanic, empty, html
from sanic.exceptions import NotFound

from sanic_nats_bridge import NatsBridge, PublishUnknown, PublishUnstored

STOCK = {"tea": 30, "milk": 50}  # your database
SCRIPT = """<script type="module">
  import { connect } from "/nats/client.js";

  const show = (text) => { document.querySelector("output").textContent = text; };
  const missing = "Reload the page: some changes are missing"; // it was disconnected for too long
  const nats = connect();
  // Every change since the position, then each new one. A change may be part of the state already, so it is a value
  // to set, and not a difference.
  nats.subscribe("stock.*", { after: document.body.dataset.position }, (count, { subject }) => {
    document.getElementById(subject).textContent = count;
  }).caughtUp.then(({ recovered }) => show(recovered ? "Live" : missing), (error) => show(error.message));
  nats.addEventListener("gap", () => show(missing));

  for (const button of document.querySelectorAll("button")) {
    button.onclick = async () => {
      const response = await fetch(`/stock/${button.name}`, { method: "POST" });
      if (!response.ok) show(`Failed: ${response.status}`);
    };
  }
</script>
"""

app = Sanic("state")
NatsBridge(app, subscribe=["stock.*"], streams={"STOCK": None})


@app.get("/")
async def index(_: Request, bridge: NatsBridge) -> HTTPResponse:
    """Serve the page: the position first, then the state, so that no change is between them."""
    try:
        position = await bridge.position("stock.*")
    except ConnectionError:  # NATS is disconnected
        return empty(503)
    rows = "".join(
        f'<li>{item}: <span id="stock.{item}">{count}</span> <button name="{item}">Sell</button></li>'
        for item, count in STOCK.items()
    )
    page = f'<!doctype html><title>Stock</title><body data-position="{position}"><ul>{rows}</ul><output></output>'
    return html(page + SCRIPT, headers={"Cache-Control": "no-store"})


@app.post("/stock/<item:str>")
async def sell(_: Request, item: str, bridge: NatsBridge) -> HTTPResponse:
    """Change the state first, then publish the new value."""
    if item not in STOCK:
        raise NotFound
    STOCK[item] -= 1
    try:
        await bridge.publish(f"stock.{item}", STOCK[item], ack=True)
    except (PublishUnknown, PublishUnstored):
        return empty(503)
    return empty(204)
