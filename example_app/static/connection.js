// The bridge's browser client with the selected transport, and the subscriptions of the page.

import { connect } from "../client.js";

export class Connection {
  #client;
  #on;
  #subscriptions = new Map();
  #commands = 0;
  #state;

  /**
   * Take an object `on` with a function for each event of the client, and `message`, `caughtUp`, `features`,
   * `subscriptions` and `ended`.
   */
  constructor(on) {
    this.#on = on;
  }

  /** Reconnect by `websocket`, `sse` or `auto`, and restore the subscriptions. */
  use(transport) {
    const previous = this.#client;
    const entries = [...this.#subscriptions.values()];
    this.#subscriptions.clear();
    const client = (this.#client = connect(transport === "auto" ? {} : { transports: [transport] }));
    previous?.close();
    for (const type of ["status", "frame", "gap"]) {
      client.addEventListener(type, ({ detail }) => client === this.#client && this.#on[type](detail));
    }
    client.addEventListener("caught_up", ({ detail }) => client === this.#client && this.#caughtUp(detail));
    client.addEventListener("frame", ({ detail: { type, features } }) => {
      if (type === "welcome" && client === this.#client) this.#on.features(features);
    });
    this.#on.status(client.status);
    // The new client resumes after the last messages of the one before, if a stream has them.
    const missed = entries.filter(({ after }) => !after).map(({ pattern }) => pattern);
    if (missed.length) this.#on.gap({ subjects: missed, lost: null, reason: "switch" });
    for (const { pattern, after } of entries) this.subscribe(pattern, { after });
    this.#followState(client);
  }

  /** Show a bucket: its keys, and then their changes, if the bridge has history. */
  follow(state) {
    this.#state = state;
  }

  #followState(client) {
    const state = this.#state;
    state.clear();
    const show = (_, message) => client === this.#client && state.message(message);
    client.subscribe(state.pattern, { from: "last_per_subject" }, show, () => {});
  }

  subscribe(pattern, { from, after } = {}) {
    if (this.#subscriptions.has(pattern)) return;
    const entry = { pattern, ready: false, after, resumes: Boolean(after) };
    this.#subscriptions.set(pattern, entry);
    entry.subscription = this.#client.subscribe(
      pattern,
      { from, after },
      (_, message) => {
        entry.after = message.id;
        this.#on.message(message);
      },
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

  publish(subject, data, options) {
    return this.#client.publish(subject, data, options);
  }

  request(subject, data, options) {
    return this.#client.request(subject, data, options);
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

  #caughtUp({ subjects, replayed, position }) {
    const entries = subjects.map((pattern) => this.#subscriptions.get(pattern)).filter(Boolean);
    const resumed = entries.some(({ resumes }) => resumes);
    for (const entry of entries) Object.assign(entry, { after: position, resumes: true });
    if (entries.length) this.#on.caughtUp(entries.map(({ pattern }) => pattern), replayed, resumed);
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
