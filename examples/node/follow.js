// The client in Node, with the WebSocket and EventSource of npm packages.
// Run: npm install --prefix examples/node && node examples/node/follow.js http://127.0.0.1:8000/nats/ 'hello.>'
// Try: start examples/hello.py before; python examples/publish.py hello.world Hi
import { EventSource } from "eventsource";
import { connect } from "sanic-nats-bridge";
import WebSocket from "ws";

const [url, ...patterns] = process.argv.slice(2);
const nats = connect({ url, WebSocket, EventSource });

nats.addEventListener("status", ({ detail }) => console.error(`${detail.state} (${detail.transport})`));
nats.addEventListener("gap", ({ detail }) => console.error(`messages were missed: ${detail.subjects.join(" ")}`));
nats.addEventListener("close", ({ detail }) => {
  console.error(`closed for good: ${detail.reason}`);
  process.exitCode = 1;
});
for (const pattern of patterns) {
  nats.subscribe(
    pattern,
    (data, { subject }) => console.log(subject, JSON.stringify(data)),
    (error) => error && console.error(`${pattern}: ${error.message}`),
  );
}
process.once("SIGINT", () => nats.close());
