// Runs the body of a function in Node with a client, prints its result, and lets the process end by itself.
import { EventSource } from "eventsource";
import WebSocket from "ws";

const [module, url, transport, body] = process.argv.slice(2);
const { connect } = await import(module);
const errors = [];
process.on("uncaughtException", ({ message }) => errors.push(message));
const client = (options) => connect({ url, transports: [transport], WebSocket, EventSource, ...options });
const state = (nats, wanted) => new Promise((resolve) =>
  nats.addEventListener("status", ({ detail }) => detail.state === wanted && resolve(detail)));
const turn = () => new Promise((resolve) => setTimeout(resolve));
const scope = { client, state, turn, errors, WebSocket, EventSource };
const AsyncFunction = (async () => {}).constructor;
console.log(JSON.stringify(await new AsyncFunction(...Object.keys(scope), body)(...Object.values(scope))));
