// Runs clients of client.js in Node, with the classes of `ws` and `eventsource`. Each line of its input is an action and its
// arguments. Each line of its output is the number of a client, a time, and what the page of that client would see.
import { createInterface } from "node:readline";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const { connect } = await import(process.argv[2]);
const SHOWN_FRAMES = new Set(["welcome", "status", "close"]); // the others have events or callbacks of their own
const clients = new Map();

/** Return a time in seconds by the monotonic clock, which all processes share. */
const now = () => Number(process.hrtime.bigint()) / 1e9;

/** Make a request, and take an error for one of the bridge, although a proxy may have sent it. */
async function fetchTrusting(...request) {
  const response = await fetch(...request);
  if (response.ok) return response;
  return Response.json({ type: "reply" }, { status: response.status, headers: { "Sanic-Nats-Bridge": "1" } });
}

const actions = {
  /** Open a client with these options. If it is `trusting`, it takes the errors of proxies for those of the bridge. */
  open(number, { patterns, trusting, ...options }) {
    const say = (what) => console.log(JSON.stringify([number, now(), what]));
    const nats = connect({ WebSocket, EventSource, fetch: trusting ? fetchTrusting : fetch, ...options });
    clients.set(number, nats);
    nats.addEventListener("status", ({ detail }) => say({ ...detail, type: "state" }));
    nats.addEventListener("frame", ({ detail }) => SHOWN_FRAMES.has(detail.type) && say(detail));
    for (const type of ["gap", "unsubscribed"]) nats.addEventListener(type, ({ detail }) => say(detail));
    for (const pattern of patterns) {
      const command = { action: "subscribe", subjects: [pattern] };
      const answer = (success, active) => say({ type: "answer", ...command, success, active });
      say({ type: "sent", ...command });
      const { ready } = nats.subscribe(pattern, (_, message) => say(message), () => {});
      ready.then(({ active }) => answer(true, active), () => answer(false));
    }
  },

  /** Close a client. */
  close(number) {
    clients.get(number).close();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [action, ...rest] = JSON.parse(line);
  actions[action](...rest);
}
process.exit();
