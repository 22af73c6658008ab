// Follows patterns in Node from places in their streams, and prints what it gets as lines of JSON.
import { EventSource } from "eventsource";
import WebSocket from "ws";

const [module, url, transport, followed] = process.argv.slice(2);
const { connect } = await import(module);
const say = (...what) => console.log(JSON.stringify(what));
const waits = Math.random;
Math.random = () => waits() / 100; // short delays before it reconnects
const nats = connect({ url, transports: [transport], WebSocket, EventSource });
for (const type of ["gap", "close", "unsubscribed"]) nats.addEventListener(type, ({ detail }) => say(type, detail));
nats.addEventListener("caught_up", ({ detail: { subjects, replayed, recovered } }) =>
  say("caught_up", { subjects, replayed, recovered }));
for (const [pattern, options] of JSON.parse(followed)) {
  nats.subscribe(pattern, options, (data, { subject, operation }) => say("message", pattern, subject, data, operation));
}
process.stdin.resume();
