// Follows patterns in Node, with the classes of `ws` and `eventsource`. Prints each event as a line of JSON, and takes
// commands on its input.
import { createInterface } from "node:readline";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const [module, url, transport, ...patterns] = process.argv.slice(2);
const { connect } = await import(module);
const say = (...what) => console.log(JSON.stringify(what));
const nats = connect({ url, transports: [transport], WebSocket, EventSource });
for (const type of ["gap", "close"]) nats.addEventListener(type, ({ detail }) => say(type, detail));
const subscriptions = patterns.map((pattern) =>
  nats.subscribe(pattern, (data, { subject }) => say("message", subject, data), (error) => say("ended", error?.code ?? null)));
const outcomes = await Promise.allSettled(subscriptions.map(({ ready }) => ready));
say("ready", outcomes.map(({ value, reason }) => value?.active ?? reason.code));
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "iterate") {
    const messages = nats.subscribe(patterns[0])[Symbol.asyncIterator]();
    say("iterates");
    say("iterated", (await messages.next()).value.data);
  }
  if (line === "close") nats.close();
}
