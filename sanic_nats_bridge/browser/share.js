// @ts-check
// Event streams that tabs share: docs/reference/client.md.
// client.js imports this module only if its option `share` is used.

/** @import * as Api from "./client.d.ts" */

/** Part of the names of channel and locks: tabs with other messages have a stream of their own. */
const VERSION = 3;
/** Milliseconds that a tab waits for an answer of the leader, twice. */
const GREETING_INTERVAL = 5000;
/** Milliseconds for which a leader has no successor after it has sent something. */
const LEASE = 3000;

/**
 * @typedef {object} Listener The callbacks of a tab for the stream.
 * @property {(frame: Api.Frame) => void} receive
 * @property {(status: Api.ClientStatus) => void} onstatus The leader's connection has changed.
 * @property {() => void} stopWaiting The leader answers.
 * @property {() => void} endSession Another tab leads now.
 * @property {(ending: { code?: number, reason: string, final?: boolean }) => void} end The leader's client is closed.
 * @property {() => void} onrenewal A tab has asked for a new session.
 * @property {(error: DOMException) => void} onlost The locks are denied, or the page is frozen (AbortError).
 */

/**
 * @typedef {object} FromTab A message of a tab to the leader.
 * @property {string} from
 * @property {number} term That of the leader for which a command is. Anything else is for any leader.
 * @property {Api.Command} [command]
 * @property {boolean} [renews] The tab asks for a new session. Without this and a command the message is a greeting.
 */

/**
 * @typedef {object} FromLeader A message of the leader. With nothing but the term: it leads from now on.
 * @property {number} term
 * @property {string} [to] The tab; all tabs if it is missing.
 * @property {Api.ClientStatus} [status]
 * @property {Api.Frame | null} [frame]
 * @property {Api.ClientEvents["close"]} [end]
 */

/**
 * Resolve when the signal is aborted.
 *
 * @param {AbortSignal} signal
 */
const aborted = (signal) => signal.aborted || new Promise((resolve) => signal.addEventListener("abort", resolve));

/**
 * One tab's part in a shared stream.
 *
 * One tab is the leader: it opens the event stream, carries out the commands of all tabs, its own included, and
 * broadcasts the frames. It holds a Web Lock whose name ends with a number, and the others wait for that lock. If they
 * get it, or the leader doesn't answer, one of them leads with the lock of the next number.
 *
 * A leader that was suspended may not know that it has a successor. So each of its messages has its term, and a tab
 * accepts only those of the latest term that it knows.
 */
export class SharedStream {
  #tab = crypto.randomUUID();
  #closing = new AbortController();
  #name;
  #channel;
  #openClient;
  #listener;
  #timer;
  /** The latest term that this tab knows. Its integer is the number of the lock. */
  #term = 0;
  /** Ends this tab's wait for the leader's lock, or its own leadership. */
  #place = new AbortController();
  /** True if the leader has answered this tab. */
  #isJoined = false;
  /** True if the leader has a connection: it sends at least heartbeats, and the client looks for silence. */
  #isConnected = false;
  /** @type {string | undefined} */
  #session;
  #greetingsLeft = 0;

  /**
   * @param {string} name
   * @param {boolean} isSuspect The leader was silent: it gets one greeting less.
   * @param {() => Api.Client} openClient Opens the event stream, if this tab becomes the leader.
   * @param {Listener} listener
   */
  constructor(name, isSuspect, openClient, listener) {
    const { signal } = this.#closing;
    this.#name = `${name} ${VERSION}`;
    this.#openClient = openClient;
    this.#listener = listener;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => {
      if (!data.from) this.#receive(data);
      if (data.renews) listener.onrenewal();
    };
    this.#timer = setInterval(() => this.#greet(), GREETING_INTERVAL);
    // The leader requests this lock too. It gets it when this tab is gone.
    this.#request(this.#tab, {}, async () => {
      await this.#check();
      if (!this.#term) this.#lead();
      if (isSuspect) this.#greetingsLeft = 0;
      await aborted(signal);
    });
    // The other tabs needn't find out that this one doesn't answer.
    for (const type of ["freeze", "pagehide"]) {
      const leave = () => listener.onlost(new DOMException("The page is frozen", "AbortError"));
      globalThis.addEventListener?.(type, leave, { capture: true, signal });
    }
  }

  /**
   * Send a message to the leader.
   *
   * @param {Partial<FromTab>} [message] A greeting if it is missing.
   */
  send(message) {
    if (!this.#isClosed) this.#channel.postMessage({ ...message, from: this.#tab, term: this.#term });
  }

  /** Leave the stream. */
  close() {
    this.#closing.abort();
    this.#place.abort();
    this.#channel.close();
    clearInterval(this.#timer);
  }

  get #isClosed() {
    return this.#closing.signal.aborted;
  }

  /**
   * Hold a lock until the promise of the callback resolves.
   *
   * @param {string} name
   * @param {LockOptions} options
   * @param {LockGrantedCallback<any>} callback
   */
  async #request(name, options, callback) {
    try {
      await navigator.locks.request(name, options, callback);
    } catch (/** @type {any} */ error) {
      if (error.name !== "AbortError") this.#listener.onlost(error);
    }
  }

  /** Follow the leader with the highest number for which a tab holds the lock or waits. */
  async #check() {
    const { held = [], pending = [] } = await navigator.locks.query();
    const numbers = [...held, ...pending].map(({ name = "" }) => {
      const [prefix, number] = name.split(/ (?=\d+$)/);
      return prefix === this.#name ? Number(number) : 0;
    });
    this.#follow(Math.max(...numbers));
  }

  /**
   * Follow a leader, if it is later than the known one.
   *
   * @param {number} term
   * @param {AbortController} [leadership] That of this tab.
   */
  #follow(term, leadership) {
    if (this.#isClosed || !(term > this.#term)) return;
    const place = leadership ?? new AbortController();
    const { signal } = place;
    if (!leadership) this.#request(`${this.#name} ${Math.floor(term)}`, { signal }, () => this.#lead());
    // After the request, so that the locks always show the other tabs which number this one knows.
    this.#place.abort();
    this.#place = place;
    this.#term = term;
    this.#isJoined = this.#isConnected = false;
    this.#session = undefined;
    this.#greetingsLeft = 1;
    this.#listener.endSession();
    this.#listener.onstatus({ state: "connecting", transport: "sse", why: "" });
    this.send();
  }

  /** Lead with the next number, unless another tab does. The promise resolves when the leadership ends. */
  async #lead() {
    const number = Math.floor(this.#term) + 1;
    await this.#request(`${this.#name} ${number}`, { ifAvailable: true }, async (lock) => {
      if (!lock) return this.#follow(number);
      if (this.#isClosed || number < this.#term) return;
      const leadership = new AbortController();
      const { signal } = leadership;
      // The fraction is for a number that had a leader before, which was gone before any other tab had followed it.
      const term = number + Date.now() / 1e13;
      new Leader(this.#name, term, this.#openClient(), signal, () => this.#check());
      this.#follow(term, leadership);
      await aborted(signal);
    });
  }

  /** Greet a leader that has no connection. If it doesn't answer, take over. */
  async #greet() {
    if (this.#isConnected) return;
    if (this.#greetingsLeft-- > 0) return this.send();
    // Meanwhile this tab reads what has come while it was suspended itself.
    await this.#check();
    if (this.#greetingsLeft < 0) this.#lead();
  }

  /** @param {FromLeader} message */
  #receive({ term, to, status, frame, end }) {
    if (term < this.#term) return; // of a leader that has a successor
    this.#follow(term);
    this.#greetingsLeft = 1;
    this.#listener.stopWaiting();
    this.#isJoined ||= to === this.#tab;
    // Anything before the answer was sent while this tab may have had another leader.
    if (!this.#isJoined || (to && to !== this.#tab)) return;
    if (status) {
      this.#isConnected = status.state === "connected";
      this.#listener.onstatus(status);
    }
    const session = frame?.type === "welcome" ? frame.session : undefined;
    // The answer to a second greeting has the same welcome.
    if (frame && (!session || session !== this.#session)) this.#listener.receive(frame);
    this.#session = session ?? this.#session;
    if (end) this.#listener.end(end);
  }
}

/** The tab that has the event stream, as the other tabs see it. */
class Leader {
  /** The subscriptions of each tab by their patterns. @type {Map<string, Map<string, Api.Subscription>>} */
  #tabs = new Map();
  #channel;
  #term;
  #client;
  #signal;
  #check;
  #leaseEnd = 0;
  #isChecking = false;
  /** Messages that wait for the check. @type {Partial<FromLeader>[]} */
  #waiting = [];

  /**
   * @param {string} name
   * @param {number} term
   * @param {Api.Client} client
   * @param {AbortSignal} signal
   * @param {() => Promise<void>} check Aborts the signal if there is a successor.
   */
  constructor(name, term, client, signal, check) {
    this.#channel = new BroadcastChannel(name);
    this.#term = term;
    this.#client = client;
    this.#signal = signal;
    this.#check = check;
    this.#channel.onmessage = ({ data }) => data.from && this.#receive(data);
    client.addEventListener("frame", ({ detail }) => {
      // Replies go to one tab. The other types are events of the client, with more details, and with its own gaps.
      if (!["reply", "gap", "unsubscribed", "close"].includes(detail.type)) this.#post({ frame: detail });
    });
    client.addEventListener("gap", ({ detail }) => this.#post({ frame: /** @type {Api.Gap} */ (detail) }));
    client.addEventListener("unsubscribed", ({ detail }) => this.#post({ frame: detail }));
    client.addEventListener("status", ({ detail }) => this.#post({ status: detail }));
    client.addEventListener("close", ({ detail }) => this.#post({ end: detail }));
    signal.addEventListener("abort", () => {
      this.#channel.close();
      client.close();
    });
    this.#post({});
  }

  /** @param {Partial<FromLeader>} message */
  #post(message) {
    this.#waiting.push({ ...message, term: this.#term });
    this.#flush();
  }

  /** Send what waits, after a check if this tab may have been suspended. */
  async #flush() {
    if (this.#isChecking) return;
    this.#isChecking = true;
    // A clock that can't be set. It may stop while the device sleeps, but so do the other tabs.
    for (let now; (now = performance.now()) > this.#leaseEnd; this.#leaseEnd = now + LEASE) await this.#check();
    this.#isChecking = false;
    if (this.#signal.aborted) return;
    this.#leaseEnd = performance.now() + LEASE;
    for (const message of this.#waiting.splice(0)) this.#channel.postMessage(message);
  }

  /** @param {FromTab} message */
  async #receive({ from, term, command, renews }) {
    if (renews) return this.#client.reconnect();
    const held = this.#tabs.get(from) ?? this.#addTab(from);
    if (!command) {
      const { status, welcome } = this.#client;
      return this.#post({ to: from, status, frame: welcome });
    }
    if (term !== this.#term) return; // its tab has failed it
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
    // Shared with the requests of earlier leaders, which may be suspended.
    const options = { mode: /** @type {const} */ ("shared"), signal: this.#signal };
    const request = navigator.locks.request(tab, options, () => {
      this.#tabs.delete(tab);
      for (const subscription of held.values()) subscription.unsubscribe();
    });
    request.catch(() => {}); // aborted
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
