"""Several workers, without sticky sessions; each job is done by one of them.

Run: sanic examples.workers:app --workers 2
Try: open http://127.0.0.1:8000 and press the button a few times
"""

import asyncio
import os

from nats.aio.msg import Msg
from sanic import HTTPResponse, Request, Sanic, empty, html

from sanic_nats_bridge import NatsBridge

PAGE = """<!doctype html>
<title>Workers</title>
<button>Start a job</button> <output></output>
<ol></ol>
<script type="module">
  import { connect } from "/nats/client.js";

  // By Server-Sent Events, a subscribe is a POST of its own, which any worker may get.
  const nats = connect({ transports: ["sse"] });
  const show = (text) => { document.querySelector("output").textContent = text; };
  nats.subscribe("jobs.done", ({ worker }) => {
    const row = document.createElement("li");
    row.textContent = worker;
    document.querySelector("ol").append(row);
  }).ready.then(() => show("Live"), (error) => show(error.message));
  document.querySelector("button").onclick = async () => {
    const response = await fetch("/jobs", { method: "POST" });
    show(response.ok ? "Started" : `Failed: ${response.status}`);
  };
</script>
"""
WORKER = os.environ.get("SANIC_WORKER_NAME", "single")

app = Sanic("workers")
NatsBridge(app, subscribe=["jobs.done"])


@app.get("/")
async def index(_: Request) -> HTTPResponse:
    """Serve the page."""
    return html(PAGE)


@app.post("/jobs")
async def start_job(_: Request, bridge: NatsBridge) -> HTTPResponse:
    """Publish a job for any worker."""
    await bridge.publish("jobs.new")
    return empty(202)


# Subscriptions end with their connection, so make them in a handler of this signal.
@app.signal("natsbridge.nats.connected")
async def receive_jobs() -> None:
    """Take part in the queue group: NATS gives each job to one of its members."""
    client = app.ctx.nats_bridge.client
    if client is not None:
        await client.subscribe("jobs.new", queue="workers", cb=do_job)


async def do_job(_: Msg) -> None:
    """Do one job, and publish which worker did it."""
    await asyncio.sleep(0.1)
    await app.ctx.nats_bridge.publish("jobs.done", {"worker": WORKER})
