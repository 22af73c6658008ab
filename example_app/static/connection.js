// The bridge's browser client for the transport that is chosen, and the patterns that are followed through it.

import { connect } from "/client.js";

export class Connection {
  #client;
  #on;
  #followed = new Map();
  #commands = 0;

  /** `on` has a function for each event of the client, and `message`, `followed` and `ended`. */
  constructor(on) {
    this.#on = on;
  }

  /** Connect anew: by `websocket`, `sse`, or `auto`. What was followed is followed again. */
  use(choice) {
    const before = this.#client;
    const patterns = [...this.#followed.keys()];
    this.#followed.clear();
    const client = (this.#client = connect(choice === "auto" ? {} : { transports: [choice] }));
    before?.close();
    for (const type of ["status", "frame", "gap"]) {
      client.addEventListener(type, ({ detail }) => client === this.#client && this.#on[type](detail));
    }
    this.#on.status(client.status);
    if (patterns.length) this.#on.gap({ subjects: patterns, lost: null, reason: "switch" });
    for (const pattern of patterns) this.follow(pattern);
  }

  follow(pattern) {
    if (this.#followed.has(pattern)) return;
    const entry = { pattern, held: false };
    this.#followed.set(pattern, entry);
    entry.subscription = this.#client.subscribe(
      pattern,
      (_, message) => this.#on.message(message),
      (error) => this.#ended(entry, error),
    );
    entry.subscription.ready.then(
      () => {
        entry.held = true;
        this.#tell();
      },
      () => {}, // #ended hears of it
    );
    this.#tell();
  }

  unfollow(pattern) {
    this.#followed.get(pattern)?.subscription.unsubscribe();
  }

  /** Send a command as it is; resolves with the reply. What it has changed is followed, or not any more. */
  async send(command) {
    const reply = await this.#client.send({ id: `console-${++this.#commands}`, ...command });
    if (reply.success) {
      for (const pattern of reply.subjects ?? []) {
        if (reply.action === "subscribe") this.follow(pattern);
        if (reply.action === "unsubscribe") this.unfollow(pattern);
      }
    }
    return reply;
  }

  #ended(entry, error) {
    if (this.#followed.get(entry.pattern) !== entry) return;
    this.#followed.delete(entry.pattern);
    this.#tell();
    if (error) this.#on.ended(entry, error);
  }

  #tell() {
    this.#on.followed([...this.#followed.values()]);
  }
}
