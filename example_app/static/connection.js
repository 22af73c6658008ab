// The bridge's browser client with the selected transport, and the subscriptions of the page.

import { connect } from "../client.js";

export class Connection {
  #client;
  #on;
  #subscriptions = new Map();
  #commands = 0;

  /** Take an object `on` with a function for each event of the client, and `message`, `subscriptions` and `ended`. */
  constructor(on) {
    this.#on = on;
  }

  /** Reconnect by `websocket`, `sse` or `auto`, and restore the subscriptions. */
  use(transport) {
    const previous = this.#client;
    const patterns = [...this.#subscriptions.keys()];
    this.#subscriptions.clear();
    const client = (this.#client = connect(transport === "auto" ? {} : { transports: [transport] }));
    previous?.close();
    for (const type of ["status", "frame", "gap"]) {
      client.addEventListener(type, ({ detail }) => client === this.#client && this.#on[type](detail));
    }
    this.#on.status(client.status);
    if (patterns.length) this.#on.gap({ subjects: patterns, lost: null, reason: "switch" });
    for (const pattern of patterns) this.subscribe(pattern);
  }

  subscribe(pattern) {
    if (this.#subscriptions.has(pattern)) return;
    const entry = { pattern, ready: false };
    this.#subscriptions.set(pattern, entry);
    entry.subscription = this.#client.subscribe(
      pattern,
      (_, message) => this.#on.message(message),
      (error) => this.#ended(entry, error),
    );
    entry.subscription.ready.then(
      () => {
        entry.ready = true;
        this.#notify();
      },
      () => {}, // #ended gets the error too
    );
    this.#notify();
  }

  unsubscribe(pattern) {
    this.#subscriptions.get(pattern)?.subscription.unsubscribe();
  }

  /** Send a command and return its reply. Apply a successful one to the subscriptions of the page. */
  async send(command) {
    const reply = await this.#client.send({ id: `console-${++this.#commands}`, ...command });
    if (reply.success) {
      for (const pattern of reply.subjects ?? []) {
        if (reply.action === "subscribe") this.subscribe(pattern);
        if (reply.action === "unsubscribe") this.unsubscribe(pattern);
      }
    }
    return reply;
  }

  #ended(entry, error) {
    if (this.#subscriptions.get(entry.pattern) !== entry) return;
    this.#subscriptions.delete(entry.pattern);
    this.#notify();
    if (error) this.#on.ended(entry, error);
  }

  #notify() {
    this.#on.subscriptions([...this.#subscriptions.values()]);
  }
}
