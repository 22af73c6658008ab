// @ts-check
// Event streams that tabs share: docs/reference/client.md.
// client.js imports this module only if its option `share` is used.
//
// Each tab requests the same Web Lock. The tab that gets it is the leader: it opens the event stream, carries out the
// commands of all tabs, its own included, and broadcasts the frames. When it is gone another tab gets the lock.

/** @import * as Api from "./client.d.ts" */

/**
 * @typedef {object} Listener The callbacks of a tab for the stream.
 * @property {(frame: Api.Frame) => void} receive
 * @property {(status: Api.ClientStatus) => void} onstatus The leader's connection has changed.
 * @property {() => void} stopWaiting The leader answers.
 * @property {() => void} endSession Another tab leads now.
 * @property {(ending: { code?: number, reason: string, final?: boolean }) => void} end The leader's client is closed.
 * @property {(error: DOMException) => void} onlost The lock is denied, or another tab has stolen it.
 */

/**
 * @typedef {object} FromTab A message of a tab to the leader.
 * @property {string} from
 * @property {Api.Command} [command] Missing in a greeting.
 */

/**
 * @typedef {object} FromLeader A message of the leader.
 * @property {string} [to] The tab; all tabs if it is missing.
 * @property {boolean} [leads] The sender leads now.
 * @property {Api.ClientStatus} [status]
 * @property {Api.Frame | null} [frame]
 * @property {Api.ClientEvents["close"]} [end]
 */

/** One tab's part in a shared stream. */
export class SharedStream {
  #tab = crypto.randomUUID();
  #closing = new AbortController();
  #channel;
  #listener;

  /**
   * @param {string} name Name of the lock and of the channel.
   * @param {boolean} steal Take the lock from a leader that doesn't answer.
   * @param {() => Api.Client} openClient Opens the event stream, if this tab becomes the leader.
   * @param {Listener} listener
   */
  constructor(name, steal, openClient, listener) {
    const { signal } = this.#closing;
    const closed = new Promise((resolve) => signal.addEventListener("abort", resolve));
    this.#listener = listener;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#receive(data);
    // The leader requests this lock too. It gets it when this tab is gone.
    this.#lock(this.#tab, {}, () => {
      this.send();
      return closed;
    });
    this.#lock(name, steal ? { steal } : { signal }, () => {
      if (!signal.aborted) new Leader(name, openClient(), signal);
      return closed;
    });
  }

  /**
   * Send a command to the leader, or a greeting.
   *
   * @param {Api.Command} [command]
   */
  send(command) {
    if (!this.#closing.signal.aborted) this.#channel.postMessage({ from: this.#tab, command });
  }

  /** Leave the stream. */
  close() {
    this.#channel.close();
    this.#closing.abort();
  }

  /**
   * Hold a lock until the promise of the callback resolves.
   *
   * @param {string} name
   * @param {LockOptions} options
   * @param {() => Promise<unknown>} callback
   */
  #lock(name, options, callback) {
    navigator.locks.request(name, options, callback).catch((error) => this.#listener.onlost(error));
  }

  /** @param {FromLeader & Partial<FromTab>} message */
  #receive({ from, to = this.#tab, leads, status, frame, end }) {
    if (from || to !== this.#tab) return;
    this.#listener.stopWaiting();
    if (leads) {
      this.#listener.endSession();
      this.send();
    }
    if (status) this.#listener.onstatus(status);
    if (frame) this.#listener.receive(frame);
    if (end) this.#listener.end(end);
  }
}

/** The tab that has the event stream, as the other tabs see it. */
class Leader {
  /** The subscriptions of each tab by their patterns. @type {Map<string, Map<string, Api.Subscription>>} */
  #tabs = new Map();
  #channel;
  #client;
  #signal;

  /**
   * @param {string} name
   * @param {Api.Client} client
   * @param {AbortSignal} signal
   */
  constructor(name, client, signal) {
    this.#channel = new BroadcastChannel(name);
    this.#client = client;
    this.#signal = signal;
    this.#channel.onmessage = ({ data }) => data.from && this.#receive(data);
    client.addEventListener("frame", ({ detail }) => {
      // Replies go to one tab. The other two types are events of the client, with more details.
      if (!["reply", "unsubscribed", "close"].includes(detail.type)) this.#post({ frame: detail });
    });
    client.addEventListener("unsubscribed", ({ detail }) => this.#post({ frame: detail }));
    client.addEventListener("status", ({ detail }) => this.#post({ status: detail }));
    client.addEventListener("close", ({ detail }) => this.#post({ end: detail }));
    signal.addEventListener("abort", () => {
      this.#channel.close();
      client.close();
    });
    this.#post({ leads: true });
  }

  /** @param {FromLeader} message */
  #post(message) {
    if (!this.#signal.aborted) this.#channel.postMessage(message);
  }

  /** @param {FromTab} message */
  async #receive({ from, command }) {
    const held = this.#tabs.get(from) ?? this.#addTab(from);
    if (!command) {
      const { status, welcome } = this.#client;
      return this.#post({ to: from, status, frame: welcome });
    }
    const { id } = command;
    try {
      this.#post({ to: from, frame: { ...(await this.#carryOut(held, command)), id } });
    } catch (error) {
      const { code, message, subjects } = /** @type {Api.NatsError} */ (error);
      this.#post({ to: from, frame: { type: "reply", id, success: false, code, message, subjects } });
    }
  }

  /**
   * Add a tab, whose subscriptions end with it.
   *
   * @param {string} tab
   */
  #addTab(tab) {
    /** @type {Map<string, Api.Subscription>} */
    const held = new Map();
    this.#tabs.set(tab, held);
    navigator.locks.request(tab, () => {
      this.#tabs.delete(tab);
      for (const subscription of held.values()) subscription.unsubscribe();
    });
    return held;
  }

  /**
   * Carry out a tab's command by the client's own subscriptions, which all tabs share.
   *
   * @param {Map<string, Api.Subscription>} held
   * @param {Api.Command} command
   * @returns {Promise<Api.Reply>}
   */
  async #carryOut(held, command) {
    const { action = "subscribe", subjects } = command;
    // The bridge refuses anything else. Without an id, because those of two tabs may be the same.
    if (!subjects?.length || !/^(un)?subscribe$/.test(action)) return this.#client.send({ ...command, id: undefined });
    let reply;
    if (action === "subscribe") [reply] = await Promise.all(subjects.map((subject) => this.#subscribe(held, subject)));
    else for (const subject of subjects) held.get(subject)?.unsubscribe();
    return { message: "", ...reply, type: "reply", action, success: true, subjects };
  }

  /**
   * @param {Map<string, Api.Subscription>} held
   * @param {string} pattern
   */
  #subscribe(held, pattern) {
    const subscription = held.get(pattern) ?? this.#client.subscribe(pattern, null, () => held.delete(pattern));
    held.set(pattern, subscription);
    return subscription.ready;
  }
}
