// Two clients in Node that share an event stream. They import the package by its name, as an application does.
import { connect } from "sanic-nats-bridge";
import { EventSource } from "eventsource";
import { webcrypto } from "node:crypto";

globalThis.crypto ??= webcrypto; // Node 18 has no global one

// Node has Web Locks from version 24 on.
class Locks {
  /** The requests for each lock; the first one holds it. */
  #requests = new Map();

  async request(name, options, callback = options) {
    const requests = this.#requests.get(name) ?? [];
    this.#requests.set(name, requests);
    if (options.ifAvailable && requests.length) return callback(null);
    const before = requests.at(-1);
    const granted = Promise.resolve(before).then(() => {
      options.signal?.throwIfAborted();
      return callback({ name });
    });
    const ended = granted.then(() => {}, () => {}).then(() => void requests.shift());
    requests.push(ended);
    return granted;
  }

  async query() {
    const pending = [...this.#requests].flatMap(([name, requests]) => requests.map(() => ({ name })));
    return { pending };
  }
}

Object.defineProperty(globalThis, "navigator", { value: { locks: new Locks() }, configurable: true });

const [url, subject] = process.argv.slice(2);
const say = (...what) => console.log(JSON.stringify(what));
const clients = [1, 2].map(() => connect({ url, transports: ["sse"], share: "ada", EventSource }));
const subscriptions = clients.map((client, index) => client.subscribe(subject, (data) => say("message", index, data)));
await Promise.all(subscriptions.map(({ ready }) => ready));
say("ready", clients.map(({ status }) => status.shared));
process.stdin.once("data", () => {
  clients.forEach((client) => client.close());
  process.stdin.destroy();
});
