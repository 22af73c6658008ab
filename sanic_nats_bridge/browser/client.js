// @ts-check
// The browser client of sanic-nats-bridge: docs/reference/client.md. The public types are in client.d.ts.

/** @import * as Api from "./client.d.ts" */
/** @import { SharedStream } from "./share.js" */

/**
 * @typedef {object} Ending Why a connection ended.
 * @property {string} reason
 * @property {number} [code] Close code.
 * @property {boolean} [final] The client must not reconnect.
 * @property {number} [retry] Milliseconds until the client reconnects.
 * @property {boolean} [silent] Nothing was received for too long.
 * @property {boolean} [replaced] A better transport took over.
 */

/**
 * @typedef {object} Interest A pattern that the page follows.
 * @property {string} pattern
 * @property {Set<Subscription>} subscriptions
 * @property {Api.Reply | null} reply The bridge's reply, while the session holds the pattern.
 */

/**
 * @typedef {object} Reader A loop over a subscription.
 * @property {Api.Message[]} queue
 * @property {() => void} wake
 */

/** @typedef {Api.Command & { id: string | number }} SentCommand */

/**
 * @typedef {Api.Options
 *   & Required<Pick<Api.Options, "transports" | "timeout" | "retryBetter" | "fetch">>
 *   & { WebSocket: typeof WebSocket, EventSource: typeof EventSource }
 * } Settings The options with their defaults.
 */

/**
 * @template Value
 * @typedef {{ promise: Promise<Value>, resolve: (value: Value) => void, reject: (error: Error) => void }} Resolvers
 */

/**
 * The close codes of the bridge: whether a client may reconnect.
 *
 * @type {Record<number, boolean>}
 */
const CLOSE_CODES = {
  1001: true,
  1002: false,
  1007: false,
  1009: false,
  1011: true,
  1013: true,
  4400: false,
  4401: false,
  4403: false,
  4429: true,
};
const UNAUTHENTICATED = 4401;

/** Codes of failed replies after which the same command may succeed. */
const TRANSIENT_CODES = /disconnected|internal|limit.rate|nats.unavailable|session/;

const FRAME_TYPES = ["welcome", "reply", "message", "gap", "unsubscribed", "status", "heartbeat", "close"];
const MAX_PATTERNS = 64; // in one command
const MAX_SILENCE = 1.75; // in heartbeats: a timer finds it within 2
const MAX_SHARED_SILENCE = 3; // the leader finds it first
const REQUEST_TIMEOUT = 15_000;
const STABLE_AFTER = 15_000; // a connection that lasted this long resets the backoff
const WELCOME_TIMEOUT = 15_000; // of the last transport; the option `timeout` is for the others

/**
 * Return a random delay in milliseconds ("full jitter"), so that a restarted server isn't overrun.
 *
 * @param {number} failures
 */
const backoff = (failures) => 500 + Math.random() * Math.min(19_500, 1500 * 2 ** failures);

/**
 * Create a `NatsError`.
 *
 * @param {string} code
 * @param {string} message
 * @param {string[]} [subjects]
 */
const createError = (code, message, subjects) => Object.assign(new Error(message), { code, subjects });

/**
 * Return a promise with the functions that settle it, as `Promise.withResolvers` does in newer browsers.
 *
 * @template Value
 * @returns {Resolvers<Value>}
 */
function withResolvers() {
  /** @type {any} */
  const result = {};
  result.promise = new Promise((resolve, reject) => Object.assign(result, { resolve, reject }));
  return result;
}

/**
 * Return a value of the tab's storage, after setting it if a new one is given. A browser may deny access.
 *
 * @param {string} key
 * @param {string} [value]
 */
function tabStorage(key, value) {
  try {
    if (value !== undefined) sessionStorage.setItem(key, value);
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}

/**
 * One of the page's subscriptions. All with the same pattern are one on the wire.
 *
 * @implements {Api.Subscription}
 */
class Subscription {
  /** @type {Set<Reader>} */
  #readers = new Set();
  #callback;
  #onended;
  #release;
  /** @type {Resolvers<Api.Reply>} */
  #ready = withResolvers();
  #confirmed = false;
  #ended = false;
  /** @type {Api.NatsError | undefined} */
  #refusal;

  /**
   * @param {string} pattern
   * @param {((data: any, message: Api.Message) => void) | null | undefined} callback
   * @param {((error?: Api.NatsError) => void) | null | undefined} onended
   * @param {() => void} release Called by `unsubscribe`.
   */
  constructor(pattern, callback, onended, release) {
    /** The subject or wildcard, as it was given to `subscribe`. */
    this.pattern = pattern;
    /** Resolves with the bridge's reply, or rejects with a `NatsError`. */
    this.ready = this.#ready.promise;
    this.ready.catch(() => {}); // a page may ignore the promise
    this.#callback = callback;
    this.#onended = onended;
    this.#release = release;
  }

  /** End this subscription; others with the same pattern stay. */
  unsubscribe() {
    this.#release();
    this.finish();
  }

  /** Iterate over the messages from now on. Leaving the loop unsubscribes, unless a callback or a loop remains. */
  [Symbol.asyncIterator]() {
    /** @type {Reader} */
    const reader = { queue: [], wake() {} };
    this.#readers.add(reader); // the generator itself starts later, at its first step
    return this.#read(reader);
  }

  /**
   * @param {Reader} reader
   * @returns {AsyncGenerator<Api.Message, void, void>}
   */
  async *#read(reader) {
    try {
      while (true) {
        while (reader.queue.length) yield* reader.queue.splice(0);
        if (this.#refusal) throw this.#refusal;
        if (this.#ended) return;
        await new Promise((resolve) => (reader.wake = () => resolve(null)));
      }
    } finally {
      this.#readers.delete(reader);
      if (!this.#callback && !this.#readers.size) this.unsubscribe();
    }
  }

  /**
   * Pass a message to the callback and to the loops.
   *
   * @param {Api.Message} message
   */
  deliver(message) {
    if (this.#ended) return; // by the callback of another subscription
    for (const reader of this.#readers) {
      reader.queue.push(message);
      reader.wake();
    }
    try {
      this.#callback?.(message.data, message);
    } catch (error) {
      // Reported by the browser, and without harm to other callbacks.
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  /**
   * Resolve `ready`: the bridge has the subscription.
   *
   * @param {Api.Reply} reply
   */
  confirm(reply) {
    this.#confirmed = true;
    this.#ready.resolve(reply);
  }

  /**
   * Deliver nothing more.
   *
   * @param {Api.NatsError} [error] Missing if the page has ended the subscription.
   */
  finish(error) {
    if (this.#ended) return;
    this.#ended = true;
    if (!this.#confirmed) this.#refusal = error;
    this.#ready.reject(error ?? createError("closed", "Closed"));
    for (const { wake } of this.#readers) wake();
    const onended = this.#onended;
    // Later, because it may throw.
    if (onended) queueMicrotask(() => onended(error));
    else if (error && !this.#readers.size) console.warn(error.message);
  }
}

/** A connection from its start to its end. A client has one after another. */
class Connection {
  open = true;
  /** True if the event stream is that of several tabs. */
  shared = false;
  /** Index of its transport in the option `transports`. */
  index = 0;
  /** Time of the first welcome; 0 before. */
  since = 0;
  /** @type {Api.Welcome | null} */
  welcome = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  welcomeTimer;
  /** Called with each frame. @type {(frame: Api.Frame) => void} */
  onframe = () => {};
  /** @type {Map<string | number, (reply: any) => void>} */
  #replies = new Map();
  #commands = 0;
  /** @type {Resolvers<Ending>} */
  #ended = withResolvers();
  /** Resolves when the connection has ended. */
  ended = this.#ended.promise;

  /**
   * @param {Settings} options
   * @param {(path: string) => string} address Returns the URL of a path of the bridge.
   */
  constructor(options, address) {
    this.options = options;
    this.address = address;
  }

  /** Open the connection. */
  start() {}

  /**
   * Write a command.
   *
   * @param {SentCommand} _command
   */
  write(_command) {}

  /** Close what `start` has opened. */
  close() {}

  /**
   * Process a frame.
   *
   * @param {Api.Frame} frame
   */
  receive(frame) {
    if (!this.open) return;
    this.onframe(frame);
    if (frame.type === "reply") this.resolve(frame.id, frame);
    if (frame.type === "close") this.end({ ...frame, final: !frame.reconnect });
  }

  /**
   * Send a command, and return its reply. The reply has the code `disconnected` if the connection ends first.
   *
   * @param {Api.Command} command
   * @returns {Promise<Api.Reply & { retry?: number }>}
   */
  send(command) {
    const id = command.id ?? `#${++this.#commands}`;
    this.write({ ...command, id });
    return new Promise((resolve) => this.#replies.set(id, resolve));
  }

  /**
   * Give a command its reply.
   *
   * @param {string | number | undefined} id
   * @param {{ code?: string }} reply
   */
  resolve(id, reply) {
    if (id === undefined) return; // the reply to the query of an event stream
    this.#replies.get(id)?.(reply);
    this.#replies.delete(id);
  }

  /** Fail the commands that have no reply yet. */
  failCommands() {
    for (const id of this.#replies.keys()) this.resolve(id, { code: "disconnected" });
  }

  /**
   * End the connection.
   *
   * @param {Ending} ending
   */
  end(ending) {
    if (!this.open) return;
    this.open = false;
    this.welcome = null;
    this.close();
    this.failCommands();
    this.#ended.resolve(ending);
  }
}

/** A WebSocket for the frames and the commands. */
class WebSocketConnection extends Connection {
  /** @type {WebSocket | undefined} */
  #socket;

  start() {
    const socket = new this.options.WebSocket(this.address("stream").replace("http", "ws"));
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    socket.onerror = () => {}; // `ws` throws if nothing listens; `onclose` follows
    socket.onclose = ({ code, reason }) =>
      this.end({ code, reason: `${code} ${reason}`, final: CLOSE_CODES[code] === false });
  }

  /** @param {SentCommand} command */
  write(command) {
    this.#socket?.send(JSON.stringify(command));
  }

  close() {
    this.#socket?.close();
  }
}

/** An event stream for the frames, with POST requests for the commands. */
class EventStreamConnection extends Connection {
  /** @type {EventSource | undefined} */
  #source;

  start() {
    const source = new this.options.EventSource(this.address("events"), { withCredentials: true });
    this.#source = source;
    for (const type of FRAME_TYPES) source.addEventListener(type, ({ data }) => this.receive(JSON.parse(data)));
    // After a refusal the source is closed (2). Else it would reconnect by itself, without the client's backoff.
    source.onerror = () => (source.readyState === 2 ? this.#endByStatus() : this.end({ reason: "ended" }));
  }

  /** End the connection by the HTTP status of the refusal, which an EventSource hides. */
  async #endByStatus() {
    const { status } = await this.#request("events", { method: "HEAD" }).catch(() => ({ status: 0 }));
    const final = /^4(?!08|29)/.test(`${status}`); // 408 and 429 are temporary
    this.end({ code: final ? 4000 + status : undefined, reason: `HTTP ${status}`, final });
  }

  /** @param {SentCommand} command */
  async write(command) {
    const path = command.action === "unsubscribe" ? "unsubscribe" : "subscribe";
    const headers = { "Content-Type": "application/json" };
    let reply = { code: "disconnected" };
    try {
      const body = JSON.stringify({ ...command, session: this.welcome?.session });
      const response = await this.#request(path, { method: "POST", headers, body });
      const frame = await response.json();
      if (this.open) this.onframe(frame);
      reply = { ...frame, retry: 1000 * Number(response.headers.get("retry-after")) };
    } catch {} // the failed reply is the report
    this.resolve(command.id, reply);
  }

  /**
   * @param {string} path
   * @param {RequestInit} init
   */
  #request(path, init) {
    const signal = AbortSignal.timeout(REQUEST_TIMEOUT);
    // Browsers want their `fetch` called without an object.
    return this.options.fetch.call(null, this.address(path), { ...init, credentials: "include", signal });
  }

  close() {
    this.#source?.close();
  }
}

/** An event stream that several tabs share. */
class SharedConnection extends Connection {
  shared = true;
  /** Called with the status of the stream. @type {(status: Api.ClientStatus) => void} */
  onstatus = () => {};
  /** Called if the stream can't be shared, or not any more. @type {(error: DOMException) => void} */
  onlost = () => {};
  /** Joins the stream. @type {() => SharedStream | undefined} */
  join = () => undefined;
  /** @type {SharedStream | undefined} */
  #stream;

  start() {
    this.#stream = this.join();
  }

  /** Wait no longer for a welcome: the leader answers, and has a timeout of its own. */
  stopWaiting() {
    clearTimeout(this.welcomeTimer);
  }

  /** End the session, because another tab leads now. */
  endSession() {
    this.welcome = null;
    this.failCommands();
  }

  /** @param {SentCommand} command */
  write(command) {
    this.#stream?.send(command);
  }

  close() {
    this.#stream?.close();
  }
}

/**
 * `EventTarget` with the types of the client's events.
 *
 * @type {new () => Pick<Api.Client, "addEventListener" | "removeEventListener" | "dispatchEvent">}
 */
const ClientEventTarget = /** @type {any} */ (EventTarget);

/**
 * The client of one bridge. It keeps a connection open, and the page's subscriptions on it, until `close`.
 *
 * @implements {Api.Client}
 */
class Client extends ClientEventTarget {
  /**
   * The state of the connection; a new object for each change.
   *
   * @type {Api.ClientStatus}
   */
  status;

  /** @type {Settings} */
  #options;
  #url;
  /** The key in the tab's storage, and the name of the stream that tabs share. */
  #name;
  /** The credentials; `null` if they must be asked for. @type {Record<string, string> | null} */
  #query;
  #closing = new AbortController();
  /** Ends the current `#pause`. */
  #wake = () => {};

  /** @type {Connection | null} */
  #connection = null;
  /** A better transport, tried beside the connection. @type {Connection | null} */
  #probe = null;
  /** Index of the transport in use, or of the one to try. */
  #index = 0;
  /** The transport that has worked, and the time until which it is tried first. */
  #remembered = { index: 0, until: 0 };
  /** True if the first transport has worked. */
  #firstHasWorked = false;
  #failures = 0;
  #receivedAt = 0;
  #suspectsSilence = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #keepaliveTimer;

  #canShare;
  /** @type {typeof SharedStream | undefined} */
  #SharedStream;
  /** True if the tab that has the shared stream doesn't answer. */
  #leaderIsSilent = false;

  /** @type {Map<string, Interest>} */
  #interests = new Map();
  #isSyncing = false;
  /** Patterns in the next command. */
  #batchSize = MAX_PATTERNS;
  #commandFailures = 0;

  /**
   * @param {Api.Options} [options]
   * @param {Record<string, string> | null} [query]
   */
  constructor(options, query = null) {
    super();
    const { document, location, navigator, BroadcastChannel, WebSocket, EventSource, fetch } = globalThis;
    /** @type {Api.Transport[]} */
    const transports = ["websocket", "sse"];
    const defaults = { transports, timeout: 3000, retryBetter: 300_000, WebSocket, EventSource, fetch };
    this.#options = /** @type {Settings} */ ({ ...defaults, ...options });
    this.#query = query;
    const { url, share } = this.#options;
    const isSharable = share !== undefined && this.#options.transports.includes("sse");
    this.#url = new URL(url ?? ".", url ? location?.href : import.meta.url).href.replace(/\/*$/, "/");
    this.#name = `sanic-nats-bridge ${JSON.stringify([this.#url, this.#options.transports, share])}`;
    this.#canShare = isSharable && !!navigator?.locks && !!BroadcastChannel;
    if (this.#canShare) this.#loadShare(); // now, because browsers don't repeat an import that has failed
    const { signal } = this.#closing;
    document?.addEventListener("visibilitychange", () => document.hidden || this.#resume(), { signal });
    globalThis.addEventListener?.("online", () => this.#reconnect(), { signal });
    this.#remembered = JSON.parse(tabStorage(this.#name) ?? "null") ?? this.#remembered;
    this.status = { state: "connecting", transport: this.#options.transports[0], why: "" };
    this.#chooseTransport();
    this.#run();
  }

  /** The first frame of the current session. */
  get welcome() {
    return this.#connection?.welcome;
  }

  /**
   * Follow a pattern, connected or not.
   *
   * @param {string} pattern
   * @param {((data: any, message: Api.Message) => void) | null} [callback] Called with each message.
   * @param {((error?: Api.NatsError) => void) | null} [onended] Called once, without an error if the page unsubscribes.
   * @returns {Subscription}
   */
  subscribe(pattern, callback, onended) {
    /** @type {Interest} */
    const interest = this.#interests.get(pattern) ?? { pattern, subscriptions: new Set(), reply: null };
    const subscription = new Subscription(pattern, callback, onended, () => {
      if (interest.subscriptions.delete(subscription)) this.#sync();
    });
    if (this.#closing.signal.aborted) subscription.finish(createError("closed", "Closed"));
    else this.#interests.set(pattern, interest);
    interest.subscriptions.add(subscription);
    if (interest.reply) subscription.confirm(interest.reply);
    this.#sync();
    return subscription;
  }

  /**
   * Send a command as it is. Its effect isn't restored after a reconnect.
   *
   * @param {Api.Command} command
   * @returns {Promise<Api.Reply>} The reply, also a failed one.
   */
  async send(command) {
    if (!this.#connection?.welcome) throw createError("disconnected", "Not connected");
    return this.#connection.send(command);
  }

  /** End all subscriptions, and the connection. */
  close() {
    this.#stop({ reason: "closed" });
  }

  /**
   * Process a frame.
   *
   * @param {Connection} connection
   * @param {Api.Frame} frame
   */
  #receive(connection, frame) {
    if (frame.type === "welcome") this.#adopt(connection, frame);
    if (connection !== this.#connection) return;
    this.#receivedAt = Date.now();
    this.#suspectsSilence = false;
    this.#dispatch("frame", frame);
    if (!connection.open) return; // a listener has closed the client
    switch (frame.type) {
      case "message": {
        const interest = this.#interests.get(frame.pattern ?? frame.subject);
        // A copy, because callbacks may subscribe and unsubscribe.
        for (const subscription of [...(interest?.subscriptions ?? [])]) subscription.deliver(frame);
        break;
      }
      case "welcome":
        this.#beginSession(connection, frame);
        break;
      case "status":
        this.#setStatus({ nats: frame.nats });
        break;
      case "gap":
        this.#dispatch("gap", frame);
        break;
      case "unsubscribed":
        for (const pattern of frame.subjects) this.#refuse(pattern, frame.code, frame.message);
    }
  }

  // Connecting

  /** Open one connection after another, until the client is closed. */
  async #run() {
    let renewed = false; // the credentials, since the last stable connection
    while (!this.#closing.signal.aborted) {
      const ending = await this.#connect();
      if (this.#closing.signal.aborted) return;
      const connection = this.#connection;
      this.#connection = null;
      this.#probe?.end(ending);
      this.#wake(); // #sync may wait before it repeats a command
      if (connection?.since && Date.now() - connection.since > STABLE_AFTER) {
        this.#failures = 0;
        renewed = false;
      }
      if (ending.code === UNAUTHENTICATED && this.#options.credentials) {
        this.#query = null;
        if (!renewed) ending.retry = 0;
        renewed = true;
      } else if (ending.final) {
        this.#stop(ending);
        this.#dispatch("close", { code: ending.code, reason: ending.reason, final: true });
        return;
      } else if (connection && this.#mayFallBack(connection, ending)) {
        const why = `${this.#transport}: ${ending.reason}`;
        this.#index++;
        this.#setStatus({ why });
        continue;
      }
      const retry = ending.retry ?? backoff(this.#failures++);
      this.#chooseTransport();
      const pause = this.#pause(retry); // before the listeners of the status, which may close the client
      this.#setStatus({ state: "waiting", reason: ending.reason, retry });
      await pause;
    }
  }

  /**
   * Open a connection, and return why it ended.
   *
   * @returns {Promise<Ending>}
   */
  async #connect() {
    this.#setStatus({ state: "connecting", transport: this.#transport });
    try {
      this.#query ??= (await this.#options.credentials?.()) ?? {};
    } catch (error) {
      return { reason: `credentials: ${error}` };
    }
    if (this.#canShare && !this.#SharedStream && this.#transport === "sse") await this.#loadShare();
    if (this.#closing.signal.aborted) return { reason: "closed" };
    this.#connection = this.#open(this.#index);
    while (true) {
      const ending = await this.#connection.ended;
      if (!ending.replaced) return ending;
    }
  }

  /** Load share.js. If that fails, the next connection has an event stream of its own. */
  async #loadShare() {
    /** @type {Resolvers<never>} */
    const { promise, reject } = withResolvers();
    const timer = setTimeout(reject, this.#options.timeout);
    try {
      this.#SharedStream = (await Promise.race([import("./share.js"), promise])).SharedStream;
    } catch {} // the browser reports it
    clearTimeout(timer);
  }

  /**
   * Open a connection.
   *
   * @param {number} index Index of the transport.
   */
  #open(index) {
    const { transports, timeout } = this.#options;
    const connection = this.#createConnection(transports[index]);
    const limit = index + 1 < transports.length ? timeout : WELCOME_TIMEOUT;
    const giveUp = () => connection.end({ reason: `no welcome in ${limit} ms`, silent: true });
    connection.index = index;
    connection.welcomeTimer = setTimeout(giveUp, limit);
    connection.onframe = (frame) => this.#receive(connection, frame);
    connection.ended.then(({ silent }) => {
      clearTimeout(connection.welcomeTimer);
      this.#leaderIsSilent = connection.shared && !!silent;
    });
    try {
      connection.start();
    } catch (error) {
      connection.end({ reason: /** @type {Error} */ (error).message });
    }
    return connection;
  }

  /** @param {Api.Transport} transport */
  #createConnection(transport) {
    const options = this.#options;
    /** @param {string} path */
    const address = (path) => `${this.#url}${path}?${new URLSearchParams(this.#query ?? {})}`;
    if (transport === "websocket") return new WebSocketConnection(options, address);
    const Stream = this.#canShare && this.#SharedStream;
    if (!Stream) return new EventStreamConnection(options, address);

    const { share, ...unshared } = options;
    const openClient = () => new Client({ ...unshared, transports: ["sse"] }, this.#query);
    const connection = new SharedConnection(options, address);
    connection.join = () => new Stream(this.#name, this.#leaderIsSilent, openClient, connection);
    connection.onstatus = ({ state, nats, reason, retry }) => this.#setStatus({ state, nats, reason, retry });
    connection.onlost = (error) => {
      // Another tab has stolen the lock (AbortError); or the browser denies locks, as it does when it blocks cookies.
      this.#canShare &&= error.name === "AbortError";
      connection.end({ reason: `${error}`, retry: 0 });
    };
    return connection;
  }

  /**
   * Return whether the next transport may work where this one failed; else the server may be down.
   *
   * @param {Connection} connection
   * @param {Ending} ending
   */
  #mayFallBack(connection, { code }) {
    if (connection.since || (code && code in CLOSE_CODES) || !this.#options.transports[this.#index + 1]) return false;
    return !this.#firstHasWorked || this.#failures > 2;
  }

  get #transport() {
    return this.#options.transports[this.#index];
  }

  /** Begin with the transport that worked last, or with the first. */
  #chooseTransport() {
    const { index, until } = this.#remembered;
    this.#index = Date.now() < until ? index : 0;
    if (this.#index) this.status = { ...this.status, why: this.status.why || "remembered" };
  }

  /** @param {number} index */
  #rememberTransport(index) {
    this.#remembered = { index, until: Date.now() + this.#options.retryBetter };
    tabStorage(this.#name, JSON.stringify(this.#remembered));
  }

  /** @param {number} milliseconds */
  #pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => resolve(clearTimeout(timer));
    });
  }

  /** Go on at once when the page is shown, or the network is back. */
  #resume() {
    this.#wake();
    this.#checkSilence();
  }

  /** Replace a connection that the network may have lost: its end isn't always noticed. */
  #reconnect() {
    this.#wake();
    if (this.welcome && !this.#connection?.shared) this.#connection?.end({ reason: "online", retry: 0 });
  }

  /**
   * Note the welcome of a connection. If it is a probe, it replaces the current one.
   *
   * @param {Connection} connection
   * @param {Api.Welcome} welcome
   */
  #adopt(connection, welcome) {
    clearTimeout(connection.welcomeTimer);
    connection.welcome = welcome;
    connection.since ||= Date.now();
    if (!connection.index) this.#firstHasWorked = true;
    if (!connection.index || Date.now() > this.#remembered.until) this.#rememberTransport(connection.index);
    if (connection === this.#connection) return;
    const worse = this.#connection;
    this.#connection = connection;
    this.#index = 0;
    worse?.end({ reason: "replaced", replaced: true });
  }

  /**
   * Subscribe again in a new session, after a `gap` for what the last one held.
   *
   * @param {Connection} connection
   * @param {Api.Welcome} welcome
   */
  #beginSession({ index, shared }, { nats }) {
    /** @type {string[]} */
    const subjects = [];
    for (const interest of this.#interests.values()) {
      if (interest.reply && interest.subscriptions.size) subjects.push(interest.pattern);
      interest.reply = null;
    }
    this.#batchSize = MAX_PATTERNS;
    this.#commandFailures = 0;
    const why = index ? this.status.why : "";
    this.#setStatus({ state: "connected", transport: this.#transport, shared, nats, why, reason: "", retry: 0 });
    if (subjects.length) this.#dispatch("gap", { type: "gap", subjects, lost: null, reason: "reconnect" });
    this.#checkSilence();
    this.#sync();
  }

  /** End a connection whose keepalive is missing: by the clock, because timers stop while a device sleeps. */
  #checkSilence() {
    clearTimeout(this.#keepaliveTimer);
    const connection = this.#connection;
    if (!connection?.welcome) return;
    const heartbeat = 1000 * connection.welcome.heartbeat;
    const limit = heartbeat * (connection.shared ? MAX_SHARED_SILENCE : MAX_SILENCE);
    const silent = this.status.state === "connected" && Date.now() - this.#receivedAt > limit;
    // Only at the second look: frames that have come in a sleep are read after the first.
    if (silent && this.#suspectsSilence) return connection.end({ reason: "silence", silent });
    this.#suspectsSilence = silent;
    if (connection.index && Date.now() > this.#remembered.until && !this.#probe?.open) {
      this.#rememberTransport(connection.index);
      this.#probe = this.#open(0);
    }
    const pause = Math.min(heartbeat / 8, silent ? 1000 : 5000);
    this.#keepaliveTimer = setTimeout(() => this.#checkSilence(), pause);
  }

  /**
   * Close the client.
   *
   * @param {Ending} ending
   */
  #stop(ending) {
    const { reason, code, final } = ending;
    this.#closing.abort();
    this.#connection?.end(ending);
    this.#probe?.end(ending);
    clearTimeout(this.#keepaliveTimer);
    this.#wake();
    this.#setStatus({ state: "closed", reason, code });
    const error = final ? createError("closed", reason) : undefined;
    for (const pattern of this.#interests.keys()) this.#drop(pattern, error);
  }

  /** @param {Partial<Api.ClientStatus>} change */
  #setStatus(change) {
    const status = { ...this.status, ...change };
    const names = /** @type {(keyof Api.ClientStatus)[]} */ (Object.keys(change));
    if (names.every((name) => status[name] === this.status[name])) return;
    this.status = status;
    this.#dispatch("status", status);
  }

  /**
   * @template {keyof Api.ClientEvents} Type
   * @param {Type} type
   * @param {Api.ClientEvents[Type]} detail
   */
  #dispatch(type, detail) {
    // Not a CustomEvent, which Node 18 lacks.
    this.dispatchEvent(Object.assign(new Event(type), { detail }));
  }

  // Subscriptions

  /** Send commands until the session holds what the page follows, and nothing else. */
  async #sync() {
    if (this.#isSyncing) return;
    this.#isSyncing = true;
    await null; // what the page asks for in this turn of the event loop goes out in one command
    while (this.#connection?.welcome) {
      const batch = this.#nextBatch();
      if (!batch.length) break;
      await this.#update(this.#connection, batch);
    }
    this.#isSyncing = false;
  }

  /** Return patterns to unsubscribe from, or else to subscribe to. */
  #nextBatch() {
    /** @type {Interest[]} */
    const unused = [];
    /** @type {Interest[]} */
    const missing = [];
    for (const interest of this.#interests.values()) {
      if (interest.subscriptions.size) interest.reply || missing.push(interest);
      else if (interest.reply) unused.push(interest);
      else this.#interests.delete(interest.pattern);
    }
    return (unused.length ? unused : missing).slice(0, this.#batchSize);
  }

  /**
   * Send one command for the batch, and act on the reply.
   *
   * @param {Connection} connection
   * @param {Interest[]} batch
   */
  async #update(connection, batch) {
    const { welcome } = connection;
    const held = batch[0].reply;
    for (const interest of batch) interest.reply = null;
    const subjects = batch.map(({ pattern }) => pattern);
    const reply = await connection.send({ action: held ? "unsubscribe" : "subscribe", subjects });
    const { success, code = "internal", message } = reply; // a proxy's answer has no code
    if (this.welcome !== welcome) return;
    if (success) {
      this.#commandFailures = 0;
      this.#batchSize = MAX_PATTERNS;
      if (!held) this.#hold(batch, reply);
    } else if (code.startsWith("auth.")) {
      connection.end({ code: UNAUTHENTICATED, reason: message, final: true });
    } else if (TRANSIENT_CODES.test(code)) {
      if (held) this.#hold(batch, held);
      if (++this.#commandFailures > 3 && code === "session.unknown") connection.end({ reason: message });
      await this.#pause(reply.retry || backoff(this.#commandFailures));
    } else if (held) {
      if (batch.length > 1) {
        this.#hold(batch, held);
        this.#batchSize = 1;
      }
    } else {
      this.#narrow(subjects, reply.subjects ?? [], code, message);
    }
  }

  /**
   * Refuse the patterns that a failed reply names. If it names none, halve the next command.
   *
   * @param {string[]} asked
   * @param {string[]} named
   * @param {string} code
   * @param {string} message
   */
  #narrow(asked, named, code, message) {
    const refused = asked.filter((pattern) => named.includes(pattern));
    if (asked.length === 1) {
      this.#refuse(asked[0], code, message);
    } else if (refused.length && refused.length < asked.length) {
      for (const pattern of refused) this.#refuse(pattern, code, message);
    } else {
      this.#batchSize = Math.ceil(asked.length / 2);
    }
  }

  /**
   * Mark the batch as held by the session.
   *
   * @param {Interest[]} batch
   * @param {Api.Reply} reply
   */
  #hold(batch, reply) {
    for (const interest of batch) {
      interest.reply = reply;
      for (const subscription of interest.subscriptions) subscription.confirm(reply);
    }
  }

  /**
   * End the subscriptions to a pattern that the bridge refuses, or doesn't allow any more.
   *
   * @param {string} pattern
   * @param {string} code
   * @param {string} message
   */
  #refuse(pattern, code, message) {
    const subjects = [pattern];
    if (this.#drop(pattern, createError(code, message, subjects))) {
      this.#dispatch("unsubscribed", { type: "unsubscribed", subjects, code, message });
    }
  }

  /**
   * End the subscriptions to a pattern; returns whether there were any.
   *
   * @param {string} pattern
   * @param {Api.NatsError} [error]
   */
  #drop(pattern, error) {
    for (const subscription of this.#interests.get(pattern)?.subscriptions ?? []) subscription.finish(error);
    return this.#interests.delete(pattern);
  }
}

/**
 * Connect to a bridge, and stay connected until the client is closed.
 *
 * @type {typeof Api.connect}
 */
export const connect = (options) => new Client(options);
