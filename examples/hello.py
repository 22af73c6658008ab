"""A page with every message that is published below ``hello.``.

Run: python examples/hello.py
Try: open http://127.0.0.1:8000; python examples/publish.py hello.world Hi
"""

from sanic import HTTPResponse, Request, Sanic, html

from sanic_nats_bridge import NatsBridge

PAGE = """<body><script type="module">import { connect } from "/nats/client.js";
connect().subscribe("hello.>", (data) => document.body.append(data, " "));</script>"""
app = Sanic("hello")
NatsBridge(app, subscribe=["hello.>"])


@app.get("/")
async def index(_: Request) -> HTTPResponse:
    """Serve the page."""
    return html(PAGE)


app.run(single_process=True)
