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
 * @property {boolean} [chosen] The client or the bridge has ended it, and not because of the transport.
 * @property {boolean} [asks] Credentials may help.
 * @property {boolean} [mayBeOrigin] The bridge, or something between, answers, but not for scripts of the page.
 * @property {Refusal} [refusal] The bridge's reply to the query of an event stream.
 */

/** @typedef {{ code: string, message: string, subjects?: string[] }} Refusal */

/**
 * @typedef {object} Interest A pattern that the page follows.
 * @property {string} pattern
 * @property {Set<Subscription>} subscriptions
 * @property {Api.Reply | null} reply The bridge's reply, while the session holds the pattern.
 * @property {boolean} missed An earlier session held it, and messages may have been missed since.
 * @property {Api.From} [from] The `from` of its next command; missing if that is to be without history.
 * @property {string} [after] The id after which it goes on: that of its last message, at least.
 * @property {string} key What the page has asked for, until the bridge has answered.
 * @property {boolean} isLive It has caught up in this session, so that every id of the session moves it.
 * @property {boolean} isCovered The bridge itself reports what is missing.
 * @property {boolean} isStale The session holds it from another place than the page has asked for since.
 * @property {Api.Recovery | null} caughtUp
 */

/** @typedef {{ from?: Api.From, after?: string }} Start The place in a stream from which subscriptions start. */

/**
 * @typedef {object} TransportRecord How the connections of a transport have ended.
 * @property {number} failures The last ones in a row that were short or fell silent.
 * @property {number} lived Milliseconds that these carried frames, on average.
 * @property {boolean} [isUnproven] The last one has carried nothing.
 */

/**
 * @typedef {object} Reader A loop over a subscription.
 * @property {Api.Message[]} queue
 * @property {() => void} wake
 */

/** @typedef {(Api.Command | Api.PublishCommand) & { id: string | number }} SentCommand */

/** @typedef {Partial<Api.Reply>} Answer A reply, or the code of a failure without one. */

/**
 * @typedef {object} Batch What one command is for.
 * @property {"subscribe" | "unsubscribe"} action
 * @property {Interest[]} interests
 * @property {Start} start
 */

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

// The bridge puts `import.meta.url` here when it serves this module. In the source there is no such address: a bundler
// would put that of the machine on which it runs.
const MODULE_URL = "";

const UNAUTHENTICATED = 4401;
const FORBIDDEN = 4403;
const UNSUPPORTED = "command.unsupported";
const UNAVAILABLE = "history.unavailable";
/** The header of the bridge's own answers. Others come from something between it and the page. */
const OWN_HEADER = "sanic-nats-bridge";

/** Codes of failed replies after which the same command may succeed. */
const TRANSIENT_CODES = /auth|blocked|disconnected|internal|limit.(publish|rate)|nats.unavailable|session|unknown/;
/** Codes of failed replies to a command that may have been carried out nevertheless. */
const UNCERTAIN_CODES = /blocked|disconnected|internal|unknown/;
/** Codes of failed replies to a POST that something on the way has refused or damaged. */
const BLOCKED_CODES = /^(blocked|origin.forbidden|command)/;
/** Codes of failed replies that concern some of the subjects. */
const SUBJECT_CODES = /^(subject|history|limit.subscriptions|nats.refused)/;
/** The characters of a pattern. The bridge checks the rest. */
const PATTERN = /^[!-~]+$/;
/** A valid `from`, as JSON. */
const FROM = /^("(new|all|last_per_subject)"|{"last":[1-9]\d*})$/;
/** Statuses with which a proxy, in place of the bridge, may ask for a login. */
const LOGIN_STATUSES = [200, 401, 403, 407, 511];

/** An interest that is followed without history from now on. */
const UNSTORED = { from: undefined, after: undefined, isLive: false, reply: null, missed: true, caughtUp: null };

const FRAME_TYPES = ["welcome", "reply", "message", "caught_up", "gap", "unsubscribed", "status", "heartbeat", "close"];
const MAX_PATTERNS = 64; // in one command
const MAX_QUERY_LENGTH = 2000; // of the patterns; proxies and servers limit a URL, often with the cookies beside it
const MAX_SILENCE = 1.75; // in heartbeats: a timer finds it within 2
const MAX_SHARED_SILENCE = 3; // the leader finds it first
const MAX_FAILURES = 3; // of a transport in a row, until another one is tried
const MAX_DELAY = 2 ** 31 - 1; // `setTimeout` takes a longer one for 0
const COMMAND_TIMEOUT = 10_000; // the bridge itself replies within 7 s
const MAX_REPEATING = 100_000; // of a publish: a stream knows its `msg_id` for 2 minutes
const SLOW_COMMAND = 1000; // the status shows that a command has no reply yet
const MIN_BLOCKED = 60_000; // for which POSTs aren't tried again, if `retryBetter` is shorter
const SLEEP = 5000; // a difference of two clocks that shows that the device was asleep, or that one was set
const STABLE_AFTER = 15_000; // a connection that lasted this long isn't short
const WELCOME_TIMEOUT = 15_000; // of the last transport, twice as long after each; the option `timeout` is for the others
const MAX_WELCOME_TIMEOUT = 120_000;

/** Return a time in milliseconds by a clock that can't be set. In most browsers it stops while the device sleeps. */
const now = () => performance.now();

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
 * @param {Partial<Api.NatsError>} [details]
 */
const createError = (code, message, details) => Object.assign(new Error(message), { code, ...details });

/**
 * Return whether stored messages are wanted, without an id.
 *
 * @param {Start} start
 */
const wantsPast = ({ from = "new" }) => from !== "new";

/** Wait while the page is prerendered: browsers hold its WebSockets and locks back until it is shown. */
async function shown() {
  const document = /** @type {any} */ (globalThis.document);
  if (!document?.prerendering) return;
  await new Promise((resolve) => document.addEventListener("prerenderingchange", resolve, { once: true }));
}

/**
 * Start a timer.
 *
 * @param {() => void} callback
 * @param {number} milliseconds
 */
const startTimer = (callback, milliseconds) => setTimeout(callback, Math.min(milliseconds, MAX_DELAY));

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
 * Return the address of the bridge, which ends with a slash.
 *
 * @param {string | URL | undefined} url
 */
function resolveUrl(url) {
  if (url === undefined && !MODULE_URL) throw new Error('connect() needs the option "url": no bridge serves this module');
  const { document, location } = globalThis;
  const page = location?.protocol === "blob:" ? location.origin : location?.href;
  const resolved = new URL(url ?? ".", url === undefined ? MODULE_URL : document?.baseURI ?? page);
  resolved.protocol = resolved.protocol.replace("ws", "http");
  if (!/^http/.test(resolved.protocol) || resolved.username) {
    throw new Error(`connect() needs a "url" with http: or https: and without a user, got ${resolved.protocol}//…`);
  }
  resolved.pathname = resolved.pathname.replace(/\/*$/, "/");
  resolved.hash = "";
  return resolved;
}

/**
 * Describe an answer that isn't from the bridge.
 *
 * @param {Response} response
 */
function describeForeign({ type, redirected, url, status, headers }) {
  if (redirected) return `redirected to ${url}`;
  if (type === "opaqueredirect") return "redirected, perhaps to a login page";
  return `HTTP ${status} ${headers.get("content-type") ?? ""}, not from the bridge`;
}

/**
 * Return the bridge's reply in an answer, also if a proxy has removed its header; `null` if there is none.
 *
 * @param {Response} response
 */
async function readReply(response) {
  const reply = await response.clone().json().catch(() => null);
  return reply?.type === "reply" ? reply : null;
}

/**
 * Return a hint for requests without an answer, if they may wait for a connection of the browser.
 *
 * @param {string} url
 */
function connectionsHint(url) {
  const { origin } = new URL(url);
  const used = /** @type {PerformanceResourceTiming[]} */ (performance.getEntries?.() ?? []);
  return used.some(({ name, nextHopProtocol }) => nextHopProtocol === "http/1.1" && name.startsWith(origin))
    ? '; over HTTP/1.1 all tabs together have six connections to a host: use HTTP/2 or the option "share"'
    : "";
}

/**
 * Return records of transports that haven't been tried.
 *
 * @param {Api.Transport[]} transports
 * @returns {TransportRecord[]}
 */
const createRecords = (transports) => transports.map(() => ({ failures: 0, lived: Infinity }));

let isOriginReported = false;

/**
 * Report to the console, once, that the bridge refuses the page's origin. Returns the reason.
 *
 * @param {string} url
 * @param {string} [who] Who refuses it, if that isn't sure.
 */
function reportOrigin(url, who = "the bridge") {
  const reason = `${who} refuses the origin ${globalThis.location?.origin}: "allowed_origins" must name it`;
  if (!isOriginReported) console.error(`${url}: ${reason}`);
  isOriginReported = true;
  return reason;
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
  /** @type {Resolvers<Api.Recovery>} */
  #caughtUp = withResolvers();
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
    /** Resolves when the live messages begin, or rejects with a `NatsError`. */
    this.caughtUp = this.#caughtUp.promise;
    for (const promise of [this.ready, this.caughtUp]) promise.catch(() => {}); // a page may ignore them
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
   * Resolve `caughtUp`: the live messages begin.
   *
   * @param {Api.Recovery} recovery
   */
  catchUp({ replayed, recovered }) {
    this.#caughtUp.resolve({ replayed, recovered });
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
    for (const { reject } of [this.#ready, this.#caughtUp]) reject(error ?? createError("closed", "Closed"));
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
  startedAt = now();
  /** Time of the last frame. */
  receivedAt = this.startedAt;
  /** Time at which data had passed in both directions; 0 before. */
  provenAt = 0;
  /** True if the frames arrive that the bridge sends, as far as it is known. */
  healthy = true;
  /** @type {Api.Welcome | null} */
  welcome = null;
  /** True if there was a welcome. */
  wasWelcome = false;
  /** Milliseconds for the welcome, and its proof. */
  welcomeTimeout = 0;
  /** Ends the connection if it isn't proven in time. @type {ReturnType<typeof setTimeout> | undefined} */
  proofTimer;
  /** The patterns of its query. @type {Interest[]} */
  queried = [];
  /** The rest of its query. @type {Start} */
  queryStart = {};
  /** True if the bridge was known to have history when the connection was opened. */
  knewHistory = false;
  /** The reply to the query. @type {Promise<any> | null} */
  queryReply = null;
  /** Called with each frame. @type {(frame: Api.Frame) => void} */
  onframe = () => {};
  /** Milliseconds within which a command has its reply, or else the connection is dead. */
  commandTimeout = 0;
  /** @type {Map<string | number | undefined, (reply: any) => void>} */
  #replies = new Map();
  #commands = 0;
  /** @type {Resolvers<Ending>} */
  #ended = withResolvers();
  /** Resolves when the connection has ended. */
  ended = this.#ended.promise;

  /**
   * @param {Settings} options
   * @param {(path: string, patterns?: Interest[], start?: Start) => string} address Returns the URL of a path of the
   *   bridge.
   */
  constructor(options, address) {
    this.options = options;
    this.address = address;
  }

  /** Open the connection. */
  start() {}

  /**
   * Show that data passes in both directions, after the welcome.
   *
   * @returns {true | Promise<boolean>}
   */
  prove() {
    return true;
  }

  /**
   * Write a command.
   *
   * @param {SentCommand} _command
   */
  write(_command) {}

  /** Close what `start` has opened. */
  close() {}

  /** Begin a new session, as the page asks for it. */
  renew() {
    this.end({ reason: "reconnect", retry: 0, chosen: true });
  }

  /**
   * End the connection, because there was no welcome or reply in time.
   *
   * @param {number} limit Milliseconds.
   * @param {() => boolean} _isMissing Return whether it has not come meanwhile.
   * @param {string} [hint]
   */
  giveUp(limit, _isMissing, hint = "") {
    this.end({ reason: `no ${this.welcome ? "reply" : "welcome"} in ${limit} ms${hint}`, silent: true });
  }

  /**
   * Process a frame.
   *
   * @param {Api.Frame} frame
   */
  receive(frame) {
    if (!this.open) return;
    this.receivedAt = now();
    this.onframe(frame);
    if (frame.type === "reply") this.resolve(frame.id, frame);
    if (frame.type === "close") this.end({ ...frame, final: !frame.reconnect, chosen: true });
  }

  /**
   * Send a command, and return its reply. The reply has the code `disconnected` if the connection ends first.
   *
   * @param {Api.Command | Api.PublishCommand} command
   * @param {number} [limit] As for `reply`.
   * @returns {Promise<Api.Reply>}
   */
  async send(command, limit = this.commandTimeout) {
    const id = command.id ?? `#${++this.#commands}`;
    if (this.#replies.has(id)) throw createError("command.invalid", `The command "${id}" has no reply yet`);
    JSON.stringify(command); // it may throw, and then there is nothing to wait for
    const reply = this.reply(id, limit);
    this.write({ ...command, id });
    return reply;
  }

  /**
   * Send a command by POST, and return its reply. A publish or a request needs no session.
   *
   * @param {Api.Command & { timeout?: number }} command
   * @returns {Promise<Answer>}
   */
  async exchange(command) {
    const { action = "", timeout = 0 } = command;
    const limit = COMMAND_TIMEOUT + 1000 * timeout;
    const path = /^(un|pub|req)/.test(action) ? action : "subscribe";
    const headers = { "Content-Type": "application/json" };
    try {
      const init = { method: "POST", headers, body: JSON.stringify(command) };
      const response = await this.request(this.address(path), init, limit);
      const reply = await readReply(response);
      if (reply) return { retry: 1000 * Number(response.headers.get("retry-after")) || undefined, ...reply };
      if (response.status < 500) return { code: "blocked", message: describeForeign(response) };
    } catch (error) {
      if (/** @type {Error} */ (error).name === "TimeoutError") {
        return { code: "blocked", message: `no answer in ${limit} ms${connectionsHint(this.address(""))}` };
      }
    }
    return { code: "disconnected" };
  }

  /**
   * @param {string} url
   * @param {RequestInit} init
   * @param {number} [limit] Milliseconds.
   */
  request(url, init, limit = COMMAND_TIMEOUT) {
    const signal = AbortSignal.timeout(limit);
    // Browsers want their `fetch` called without an object.
    return this.options.fetch.call(null, url, { credentials: "include", signal, ...init });
  }

  /**
   * Return the reply to a command, or to the query of an event stream.
   *
   * @param {string | number | undefined} id
   * @param {number} limit Milliseconds; 0 if there is no limit.
   * @returns {Promise<any>}
   */
  async reply(id, limit) {
    const giveUp = () => this.giveUp(limit, () => this.#replies.has(id));
    const timer = limit ? startTimer(giveUp, limit) : undefined;
    const reply = await new Promise((resolve) => this.#replies.set(id, resolve));
    clearTimeout(timer);
    return reply;
  }

  /**
   * Give a command its reply.
   *
   * @param {string | number | undefined} id
   * @param {{ code?: string }} reply
   */
  resolve(id, reply) {
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
  commandTimeout = COMMAND_TIMEOUT;

  start() {
    const socket = new this.options.WebSocket(this.address("stream").replace("http", "ws"));
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    socket.onerror = () => {}; // `ws` throws if nothing listens; `onclose` follows
    // The bridge sends a `close` frame before. Codes below 4000 are also used by browsers and proxies.
    socket.onclose = ({ code, reason }) =>
      this.end({ code, reason: `${code} ${reason}`.trim(), final: /^440[013]/.test(`${code}`) });
  }

  /** Ask for a reply that doesn't depend on NATS. */
  prove() {
    return this.send({ action: "ping" }).then(({ code }) => code !== "disconnected");
  }

  /**
   * Send it as a frame. If there is no reply in time, look whether the connection is dead.
   *
   * @param {Api.PublishCommand} command
   */
  async exchange(command) {
    const timer = startTimer(() => this.prove(), COMMAND_TIMEOUT);
    const reply = await this.send(command, 0);
    clearTimeout(timer);
    return reply;
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

  get #streamUrl() {
    return this.address("events", this.queried, this.queryStart);
  }

  start() {
    const source = new this.options.EventSource(this.#streamUrl, { withCredentials: true });
    this.#source = source;
    if (this.queried.length) this.queryReply = this.reply(undefined, this.welcomeTimeout + COMMAND_TIMEOUT);
    for (const type of FRAME_TYPES) source.addEventListener(type, ({ data }) => this.receive(JSON.parse(data)));
    // After a refusal the source is closed (2). Else it would reconnect by itself, without the client's backoff, and with
    // its own `Last-Event-ID` in place of the positions of the subscriptions.
    source.onerror = () => (source.readyState === 2 ? this.#endByAnswer() : this.end({ reason: "ended" }));
  }

  /** End the connection by the answer to the same request, which an EventSource hides. */
  async #endByAnswer() {
    try {
      this.end(await this.#explain(await this.request(this.#streamUrl, { redirect: "manual" })));
    } catch (error) {
      const { location } = globalThis;
      const url = this.address("");
      // A TypeError is all that a script gets to see if an answer doesn't allow its origin.
      const isForeign = error instanceof TypeError && location && new URL(url).origin !== location.origin;
      const answers = isForeign && this.request(this.address("health/live"), { mode: "no-cors" }).then(() => true, () => false);
      this.end({ reason: `${error}`, mayBeOrigin: await answers });
    }
  }

  /**
   * Return the ending by an answer to the request for the stream.
   *
   * @param {Response} response
   * @returns {Promise<Ending>}
   */
  async #explain(response) {
    const { status, type, headers, body } = response;
    const isOwn = headers.has(OWN_HEADER);
    if (isOwn && headers.get("content-type")?.startsWith("text/event-stream")) {
      return { reason: "ended", retry: void body?.cancel() };
    }
    const refusal = await readReply(response);
    // Another worker of the bridge may have no history yet.
    const isUnsupported = refusal?.code === UNSUPPORTED && this.queryStart.from;
    if (isUnsupported || SUBJECT_CODES.test(refusal?.code)) return { reason: refusal.message, refusal };
    if (!isOwn || !refusal) {
      return { reason: describeForeign(response), asks: type === "opaqueredirect" || LOGIN_STATUSES.includes(status) };
    }
    const final = /^4(?!08|29)/.test(`${status}`); // 408 and 429 are temporary
    return { code: final ? 4000 + status : undefined, reason: `HTTP ${status}`, final };
  }

  /**
   * End the connection as `Connection` does, and hint at the reason.
   *
   * @param {number} limit
   * @param {() => boolean} isMissing
   */
  async giveUp(limit, isMissing) {
    const hint = await this.request(this.address("events"), { method: "HEAD" }).then(
      ({ headers }) => (headers.has(OWN_HEADER) ? "; a proxy may hold the event stream back" : ""),
      () => connectionsHint(this.address("")),
    );
    if (isMissing()) super.giveUp(limit, isMissing, hint);
  }

  /** @param {SentCommand} command */
  async write(command) {
    const reply = await this.exchange({ ...command, session: this.welcome?.session });
    if (this.open && reply.type) this.onframe(/** @type {Api.Reply} */ (reply));
    this.resolve(command.id, reply);
  }

  close() {
    this.#source?.close();
  }
}

/** An event stream that several tabs share. */
class SharedConnection extends Connection {
  shared = true;
  /** True until the first welcome of a leader: a later one is of the same client, which reports its gaps itself. */
  hasNewLeader = true;
  /** Called with the status of the stream. @type {(status: Api.ClientStatus) => void} */
  onstatus = () => {};
  /** Called if the stream can't be shared, or not any more. @type {(error: DOMException) => void} */
  onlost = () => {};
  /** Called if a tab asks for a new session. */
  onrenewal = () => {};
  /** Joins the stream. @type {() => SharedStream | undefined} */
  join = () => undefined;
  /** @type {SharedStream | undefined} */
  #stream;

  start() {
    this.#stream = this.join();
  }

  /** Wait no longer for a welcome: the leader answers, and has a timeout of its own. */
  stopWaiting() {
    clearTimeout(this.proofTimer);
  }

  /** End the session, because another tab leads now. */
  endSession() {
    this.welcome = null;
    this.hasNewLeader = true;
    this.failCommands();
  }

  /** @param {SentCommand} command */
  write(command) {
    this.#stream?.send({ command });
  }

  /** Ask the leader for a new session. If there is no answer, this tab finds out as it does at any time. */
  renew() {
    this.#stream?.send({ renews: true });
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
  /** The address of the bridge, which ends with a slash, and the query of all requests. */
  #url;
  /** The key in the tab's storage, and the name of the stream that tabs share. */
  #name;
  /** The credentials; `null` if they must be asked for. @type {URLSearchParams | null} */
  #query;
  /** Counts the times that they were forgotten. */
  #renewals = 0;
  /** Counts the times that the page, or one with which it shares a stream, may have got another user. */
  #logins = 0;
  #closing = new AbortController();
  /** Called to end each current `#pause`. @type {Set<() => void>} */
  #pauses = new Set();

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
  /** True if there was a session. */
  #wasWelcome = false;
  /** Milliseconds for the welcome of the last transport. */
  #welcomeTimeout = WELCOME_TIMEOUT;
  /** @type {TransportRecord[]} */
  #records;
  /** Connections in a row that didn't work. */
  #failures = 0;
  #suspectsSilence = false;
  /** Time at which a connection is silent; changed if the device was asleep. */
  #silentAt = Infinity;
  /** The difference of the two clocks. */
  #clockOffset = Date.now() - now();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #keepaliveTimer;
  /** Time until which commands aren't sent by POST, because something on the way refuses it. */
  #postsBlockedUntil = 0;

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

  /** True if the session, or the one before, has history. */
  #hasHistory = false;
  /** The last id of the session. */
  #lastId = "";
  /** The id before it. Another subscription may have a message with the last one, which comes next. */
  #idBefore = "";

  /**
   * @param {Api.Options} [options]
   * @param {URLSearchParams | null} [query]
   */
  constructor(options, query = null) {
    super();
    const { document, navigator, BroadcastChannel, WebSocket, EventSource, fetch } = globalThis;
    /** @type {Api.Transport[]} */
    const transports = ["websocket", "sse"];
    const defaults = { transports, timeout: 3000, retryBetter: 300_000, WebSocket, EventSource, fetch };
    const given = Object.entries(options ?? {}).filter(([, value]) => value !== undefined);
    this.#options = /** @type {Settings} */ ({ ...defaults, ...Object.fromEntries(given) });
    this.#query = query;
    const { url, share } = this.#options;
    const isSharable = share !== undefined && this.#options.transports.includes("sse");
    this.#url = resolveUrl(url);
    this.#name = `sanic-nats-bridge ${JSON.stringify([this.#url, this.#options.transports, share])}`;
    this.#records = createRecords(this.#options.transports);
    this.#canShare = isSharable && !!navigator?.locks && !!BroadcastChannel;
    if (this.#canShare) this.#loadShare(); // now, because browsers don't repeat an import that has failed
    const { signal } = this.#closing;
    document?.addEventListener("visibilitychange", () => document.hidden || this.#resume(), { signal });
    globalThis.addEventListener?.("online", () => this.#reconnect(), { signal });
    const [index, wall] = (tabStorage(this.#name) ?? "").split(" ").map(Number);
    // Not after `retryBetter`, also if the clock was set. False for what isn't a number.
    if (this.#options.transports[index] && wall > Date.now()) {
      this.#remembered = { index, until: now() + Math.min(wall - Date.now(), this.#options.retryBetter) };
    }
    this.status = { state: "connecting", transport: this.#options.transports[0], why: "", reason: "" };
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
   * @param {Api.SubscribeOptions | ((data: any, message: Api.Message) => void) | null} [options] Optional.
   * @param {((...all: any) => void) | null} [callback] Called with each message.
   * @param {((error?: Api.NatsError) => void) | null} [onended] Called once, without an error if the page unsubscribes.
   * @returns {Subscription}
   */
  subscribe(pattern, options, callback, onended) {
    if (typeof options !== "object" || !options) return this.subscribe(pattern, {}, options, callback);
    const { from = "new", after } = options;
    const isPast = wantsPast({ from }) || after !== undefined;
    const key = JSON.stringify([from, after]);
    /** @type {Interest} */
    const interest = this.#interests.get(pattern) ?? /** @type {any} */ ({ pattern, subscriptions: new Set(), reply: null });
    const { subscriptions } = interest;
    /** @type {Subscription} */
    const subscription = new Subscription(pattern, callback, onended, () => {
      if (subscriptions.delete(subscription)) this.#sync();
    });
    if (isPast) {
      const isTaken = subscriptions.size && key !== interest.key;
      const error = isTaken ? `${pattern} is already followed from another place` : `Not a valid "from": ${JSON.stringify(from)}`;
      if (isTaken || !FROM.test(JSON.stringify(from))) {
        subscription.finish(createError("command.invalid", error, { subjects: [pattern] }));
        return subscription;
      }
      this.#stopSharing();
    }
    if (!subscriptions.size && (isPast || !interest.reply)) {
      // What the session still holds is for another place.
      const start = { from, after, key, isStale: isPast, missed: !!after };
      Object.assign(interest, start, { isLive: false, isCovered: false, caughtUp: null });
    }
    if (this.#closing.signal.aborted) subscription.finish(createError("closed", "Closed"));
    else this.#interests.set(pattern, interest);
    subscriptions.add(subscription);
    if (interest.reply && !interest.isStale) subscription.confirm(interest.reply);
    if (interest.caughtUp) subscription.catchUp({ replayed: 0, recovered: true });
    if (typeof pattern !== "string" || !PATTERN.test(pattern)) {
      this.#refuse(pattern, "subject.invalid", `Not a valid subject: ${JSON.stringify(pattern)}`);
    }
    this.#sync();
    return subscription;
  }

  /**
   * Publish a message. With `ack` it is repeated until a stream has it.
   *
   * @param {string} subject
   * @param {any} [data]
   * @param {Api.PublishOptions} [options]
   */
  async publish(subject, data, options) {
    return this.#exchange({ ...options, action: "publish", subject, data });
  }

  /**
   * Send a request, and return its first answer.
   *
   * @param {string} subject
   * @param {any} [data]
   * @param {Api.RequestOptions} [options]
   * @returns {Promise<any>}
   */
  async request(subject, data, options) {
    return this.#exchange({ ...options, action: "request", ack: undefined, subject, data });
  }

  /**
   * Send a publish or a request, and return its reply.
   *
   * @param {object} given
   * @returns {Promise<Api.Reply>}
   */
  async #exchange(given) {
    /** A copy, because the page may change its data before a repetition. @type {Api.PublishCommand} */
    const command = JSON.parse(JSON.stringify(given));
    const { action, ack } = command;
    if (ack) command.msg_id ??= crypto.getRandomValues(new Uint32Array(4)).join("-");
    const limit = ack ? MAX_REPEATING : COMMAND_TIMEOUT;
    const end = now() + limit;
    const wallEnd = Date.now() + limit; // the other clock may stop while the device sleeps
    let error = createError("disconnected", "Not connected");
    let isUncertain = false;
    let failures = 0;
    let resumeAt = 0;
    const logins = this.#logins;
    while (!this.#closing.signal.aborted && now() < end && Date.now() < wallEnd && logins === this.#logins) {
      const connection = this.#connection;
      if (!connection?.welcome || now() < resumeAt) {
        if (action === "publish" && !ack) break;
        await this.#pause((connection?.welcome ? resumeAt : end) - now());
        continue;
      }
      /** @type {Answer} */
      const reply = connection.welcome.features?.includes(action)
        ? await connection.exchange(command)
        : { code: UNSUPPORTED, message: `The bridge has no ${action}` };
      const { success, code = "internal", message = "no reply", subjects, retry, description, service_code: serviceCode } = reply;
      if (success) return /** @type {Api.Reply} */ (reply);
      error = createError(code, message, { subjects, retry, description, serviceCode });
      if (code.startsWith("auth.")) connection.end({ code: UNAUTHENTICATED, reason: message, final: true });
      if (!ack || !(TRANSIENT_CODES.test(code) || (isUncertain && code === "publish.unstored"))) break;
      isUncertain ||= UNCERTAIN_CODES.test(code);
      resumeAt = connection.open ? now() + (retry || backoff(failures++)) : 0;
    }
    if (isUncertain) error.code = "publish.unknown";
    throw error;
  }

  /**
   * Send a command as it is. Its effect isn't restored after a reconnect.
   *
   * @param {Api.Command | Api.PublishCommand} command
   * @returns {Promise<Api.Reply>} The reply, also a failed one.
   */
  async send(command) {
    if (!this.#connection?.welcome) throw createError("disconnected", "Not connected");
    return this.#connection.send(command);
  }

  /**
   * Connect again in a new session, after asking for the credentials. The subscriptions stay. A stream that tabs share
   * has a new session for all of them.
   */
  reconnect() {
    this.#logins++;
    this.#forgetCredentials();
    this.#failures = 0;
    this.#wake();
    this.#probe?.end({ reason: "reconnect" });
    this.#connection?.renew();
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
    if (frame.type === "welcome") this.#noteWelcome(connection, frame);
    if (connection !== this.#connection) return;
    this.#silentAt = Infinity;
    this.#suspectsSilence = false;
    this.#dispatch("frame", frame);
    if (!connection.open) return; // a listener has closed the client
    switch (frame.type) {
      case "message": {
        const interest = this.#interests.get(frame.pattern ?? frame.subject);
        if (!interest || interest.isStale) break;
        this.#move(interest, frame.id);
        // Messages of an event stream may come before the reply.
        if (interest.missed) this.#reportMissed([interest]);
        // A copy, because callbacks may subscribe and unsubscribe.
        for (const subscription of [...interest.subscriptions]) subscription.deliver(frame);
        break;
      }
      case "caught_up":
        for (const pattern of this.#hasHistory ? frame.subjects : []) {
          const interest = this.#interests.get(pattern);
          if (interest && !interest.isStale) this.#catchUp(interest, frame, frame.position);
        }
        this.#dispatch("caught_up", frame);
        break;
      case "heartbeat":
        if (frame.id) this.#lastId = this.#idBefore = frame.id;
        break;
      case "welcome":
        this.#beginSession(connection);
        break;
      case "status":
        this.#setStatus({ nats: frame.nats });
        break;
      case "gap":
        this.#dispatch("gap", frame);
        break;
      case "unsubscribed":
        for (const pattern of frame.subjects) {
          const interest = frame.code === UNAVAILABLE && this.#interests.get(pattern);
          if (!interest) this.#refuse(pattern, frame.code, frame.message);
          // The stream is gone. A new object, because the command for the old one may still wait for its reply.
          else this.#interests.set(pattern, { ...interest, ...UNSTORED });
        }
        this.#sync();
    }
  }

  /**
   * Note the id of a message, from which its subscription goes on in the next session.
   *
   * Two patterns may match one message, which then comes twice with one id. So it moves the other subscriptions only to
   * the id before. One that hasn't caught up is behind the others, or ahead of them.
   *
   * @param {Interest} interest
   * @param {string} [id]
   */
  #move(interest, id) {
    interest.key = "";
    if (!id || !this.#hasHistory) return interest.caughtUp || this.#catchUp(interest);
    if (interest.isLive && id !== this.#lastId) {
      this.#idBefore = this.#lastId;
      this.#lastId = id;
    }
    interest.after = id;
  }

  /**
   * Note that the live messages of a subscription begin.
   *
   * @param {Interest} interest
   * @param {Api.Recovery} [recovery]
   * @param {string} [position] The id of the session; missing if no stream has the messages.
   */
  #catchUp(interest, recovery = { replayed: 0, recovered: !interest.missed }, position) {
    if (position) this.#lastId = this.#idBefore = position;
    else interest.from = "new";
    Object.assign(interest, { after: position, isLive: !!position, caughtUp: recovery });
    for (const subscription of interest.subscriptions) subscription.catchUp(recovery);
  }

  /**
   * Return the id after which a subscription goes on.
   *
   * @param {Interest} interest
   */
  #positionOf({ isLive, after }) {
    return isLive && after !== this.#lastId ? this.#idBefore : after;
  }

  /**
   * Return the place from which a subscription starts, or goes on.
   *
   * @param {Interest} interest
   * @returns {Start}
   */
  #startOf(interest) {
    return this.#hasHistory && interest.from ? { after: this.#positionOf(interest), from: interest.from } : {};
  }

  /**
   * Note what is asked for.
   *
   * @param {Interest[]} interests
   * @param {Start} start
   */
  #cover(interests, start) {
    const isCovered = !!start.after || wantsPast(start);
    for (const interest of interests) Object.assign(interest, { isCovered, isStale: false });
  }

  /** Leave the stream that tabs share: no other tab has the old messages that this page asks for. */
  #stopSharing() {
    this.#canShare = false;
    if (this.#connection?.shared) this.#connection.end({ reason: "history", retry: 0, chosen: true });
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
      if (connection?.provenAt) this.#failures = 0;
      if (connection?.provenAt && now() - connection.startedAt > STABLE_AFTER) renewed = false;
      if ((ending.code === UNAUTHENTICATED || ending.asks) && this.#options.credentials) {
        this.#forgetCredentials();
        if (!renewed) ending.retry = 0;
        renewed = true;
      } else if (ending.final && !this.#isOriginRefused(connection, ending)) {
        this.#stop(ending);
        this.#dispatch("close", { code: ending.code, reason: ending.reason, final: true });
        return;
      } else if (ending.refusal && connection?.queried.length) {
        const { code, message, subjects = [] } = ending.refusal;
        if (code === UNSUPPORTED) this.#hasHistory = false;
        else this.#narrow(connection.queried.map(({ pattern }) => pattern), subjects, code, message);
        continue;
      }
      // A bridge that has welcomed the page before doesn't refuse its origin.
      if (ending.mayBeOrigin && !this.#wasWelcome) ending.reason = reportOrigin(this.#url.href, "the bridge, or a proxy,");
      if (connection && this.#mayFallBack(connection, ending)) continue;
      const retry = Math.min(ending.retry ?? backoff(this.#failures++), MAX_DELAY);
      this.#chooseTransport();
      const pause = this.#pause(retry); // before the listeners of the status, which may close the client
      this.#setStatus({ state: "waiting", reason: ending.reason, retry });
      await pause;
    }
  }

  /**
   * Return whether the bridge has refused a WebSocket by its origin: a request for an event stream may have none.
   *
   * @param {Connection | null} connection
   * @param {Ending} ending
   */
  #isOriginRefused(connection, ending) {
    if (ending.code !== FORBIDDEN || !(connection instanceof WebSocketConnection) || connection.wasWelcome) return false;
    reportOrigin(this.#url.href);
    ending.chosen = false;
    return this.#options.transports.length > 1;
  }

  /**
   * Open a connection, and return why it ended.
   *
   * @returns {Promise<Ending>}
   */
  async #connect() {
    this.#setStatus({ state: "connecting", transport: this.#transport });
    await shown();
    if (this.#canShare && !this.#SharedStream && this.#transport === "sse") await this.#loadShare();
    try {
      await this.#askCredentials();
    } catch (error) {
      return { reason: `credentials: ${error}` };
    }
    if (this.#closing.signal.aborted) return { reason: "closed" };
    this.#connection = this.#open(this.#index);
    while (true) {
      const ending = await this.#connection.ended;
      if (!ending.replaced) return ending;
    }
  }

  /** Ask for the credentials if they aren't known. Throws what the page's function throws. */
  async #askCredentials() {
    while (!this.#query) {
      const renewals = this.#renewals;
      const timer = startTimer(() => this.#setStatus({ reason: "credentials: no result yet" }), SLOW_COMMAND);
      try {
        const query = new URLSearchParams((await this.#options.credentials?.()) ?? {});
        if (renewals === this.#renewals) this.#query = query; // else it may be that of the user before
      } finally {
        clearTimeout(timer);
      }
    }
  }

  #forgetCredentials() {
    this.#query = null;
    this.#renewals++;
  }

  /** Load share.js. If that fails, the next connection has an event stream of its own. */
  async #loadShare() {
    /** @type {Resolvers<never>} */
    const { promise, reject } = withResolvers();
    const timer = startTimer(() => reject(new Error("timeout")), this.#options.timeout);
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
    const isLast = index + 1 === transports.length;
    const limit = isLast ? this.#welcomeTimeout : timeout;
    connection.index = index;
    connection.welcomeTimeout = limit;
    connection.proofTimer = startTimer(() => {
      // A proxy may send what it has collected only now and then.
      if (isLast) this.#welcomeTimeout = Math.min(2 * limit, MAX_WELCOME_TIMEOUT);
      connection.giveUp(limit, () => !connection.provenAt);
    }, limit);
    connection.onframe = (frame) => this.#receive(connection, frame);
    connection.ended.then(({ silent }) => {
      clearTimeout(connection.proofTimer);
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
    /**
     * @param {string} path
     * @param {Interest[]} [patterns]
     * @param {Start} [start]
     */
    const address = (path, patterns = [], { from, after } = {}) => {
      const url = new URL(path, this.#url);
      url.search = this.#url.search;
      for (const [name, value] of this.#query ?? []) url.searchParams.set(name, value);
      url.searchParams.delete("subjects"); // they are the client's own
      for (const { pattern } of patterns) url.searchParams.append("subjects", pattern);
      if (from) url.searchParams.set("from", typeof from === "string" ? from : JSON.stringify(from));
      if (after) url.searchParams.set("after", after);
      return url.href;
    };
    if (transport === "websocket") return new WebSocketConnection(options, address);
    const Stream = this.#canShare && this.#SharedStream;
    if (!Stream) {
      const connection = new EventStreamConnection(options, address);
      connection.knewHistory = this.#hasHistory;
      return Object.assign(connection, this.#createQuery());
    }

    const { share, ...unshared } = options;
    const openClient = () => new Client({ ...unshared, url: this.#url, transports: ["sse"] }, this.#query);
    const connection = new SharedConnection(options, address);
    connection.join = () => new Stream(this.#name, this.#leaderIsSilent, openClient, connection);
    connection.onstatus = ({ state, nats, reason, retry }) => {
      connection.healthy = state === "connected";
      if (connection !== this.#connection) return; // it may be a probe
      if (connection.healthy) this.#setStatus({ nats });
      else this.#setStatus({ state, nats, reason, retry });
      this.#settle();
    };
    connection.onrenewal = () => {
      this.#logins++;
      this.#forgetCredentials();
    };
    connection.onlost = (error) => {
      // The page is frozen (AbortError); or the browser denies locks, as it does when it blocks cookies.
      this.#canShare &&= error.name === "AbortError";
      connection.end({ reason: `${error}`, retry: 0, chosen: true });
    };
    return connection;
  }

  /** Return the query of a new event stream: patterns that fit, and the one place from which they all start. */
  #createQuery() {
    const followed = [...this.#interests.values()].filter(
      // The bridge takes a comma in the query for a mistake.
      (interest) => interest.subscriptions.size && !interest.pattern.includes(",") && (this.#hasHistory || !wantsPast(interest)),
    );
    const keys = followed.map((interest) => JSON.stringify(this.#startOf(interest)));
    let queryStart = followed.length ? this.#startOf(followed[0]) : {};
    // Without POSTs all need one place. Those that can't have theirs get a `gap`.
    const isMerged = this.#hasHistory && now() < this.#postsBlockedUntil && new Set(keys).size > 1;
    if (isMerged) queryStart = { from: "new" };
    const queried = followed.filter((interest, index) => (isMerged ? !wantsPast(interest) : keys[index] === keys[0]));
    let length = 0;
    return {
      queryStart,
      queried: queried.slice(0, this.#batchSize).filter(({ pattern }) => {
        const more = encodeURIComponent(pattern).length + 10;
        const fits = length + more <= MAX_QUERY_LENGTH;
        if (fits) length += more;
        return fits;
      }),
    };
  }

  /**
   * Note how a connection has ended. If another transport may do better, go on with it, and return whether the client
   * may do so at once.
   *
   * @param {Connection} connection
   * @param {Ending} ending
   */
  #mayFallBack({ index, startedAt, receivedAt, provenAt, shared }, { code, reason, silent, chosen }) {
    const { transports } = this.#options;
    const record = this.#records[index];
    const lived = provenAt && (silent ? receivedAt : now()) - startedAt;
    if (chosen || shared || code === UNAUTHENTICATED) return false;
    if (!silent && lived > STABLE_AFTER) {
      this.#records[index] = { failures: 0, lived: Infinity };
      return false;
    }
    record.lived = record.failures ? (record.lived + lived) / 2 : lived;
    record.failures++;
    record.isUnproven = !provenAt;
    const other = this.#records[1 - index];
    // If neither works, the network or the server is down, and neither transport is to blame.
    if (record.isUnproven && other?.isUnproven) this.#records = createRecords(transports);
    const hasWorked = provenAt || (!index && this.#firstHasWorked);
    if (!(other?.lived >= record.lived) || (hasWorked && record.failures < MAX_FAILURES)) return false;
    if (!provenAt && index) return false;
    this.#index = 1 - index;
    if (provenAt) this.#rememberTransport(this.#index);
    this.status = { ...this.status, why: `${transports[index]}: ${reason}` }; // dispatched with the next state
    return !provenAt;
  }

  get #transport() {
    return this.#options.transports[this.#index];
  }

  /** Begin with the transport that worked last, or with the first. */
  #chooseTransport() {
    const { index, until } = this.#remembered;
    this.#index = now() < until ? index : 0;
    if (this.#index) this.status = { ...this.status, why: this.status.why || "remembered" };
  }

  /** @param {number} index */
  #rememberTransport(index) {
    const { retryBetter } = this.#options;
    this.#remembered = { index, until: now() + retryBetter };
    tabStorage(this.#name, `${index} ${Date.now() + retryBetter}`);
  }

  /**
   * Wait for a time, or until the connection or its surroundings have changed.
   *
   * @param {number} milliseconds
   */
  #pause(milliseconds) {
    return new Promise((resolve) => {
      const wake = () => resolve(this.#pauses.delete(wake) && clearTimeout(timer));
      const timer = startTimer(wake, milliseconds);
      this.#pauses.add(wake);
    });
  }

  /** End all pauses. */
  #wake() {
    for (const wake of this.#pauses) wake();
  }

  /** Go on at once when the page is shown, or the network is back. */
  #resume() {
    this.#wake();
    this.#checkSilence();
  }

  /** Replace a connection that the network may have lost: its end isn't always noticed. */
  #reconnect() {
    this.#wake();
    if (this.welcome && !this.#connection?.shared) {
      this.#connection?.end({ reason: "online", retry: 0, chosen: true });
    }
  }

  /**
   * Note the welcome of a connection, which shows that data arrives, and have it prove that data is sent too.
   *
   * @param {Connection} connection
   * @param {Api.Welcome} welcome
   */
  #noteWelcome(connection, welcome) {
    connection.welcome = welcome;
    connection.wasWelcome = this.#wasWelcome = true;
    const proof = connection.prove();
    if (proof === true) this.#noteProof(connection);
    else proof.then((isProven) => isProven && this.#noteProof(connection));
  }

  /**
   * Note that data has passed in both directions. If the connection is a probe, it replaces the current one.
   *
   * @param {Connection} connection
   */
  #noteProof(connection) {
    clearTimeout(connection.proofTimer);
    connection.provenAt ||= now();
    this.#welcomeTimeout = WELCOME_TIMEOUT;
    if (!connection.index) this.#firstHasWorked = true;
    if (!connection.index || now() > this.#remembered.until) this.#rememberTransport(connection.index);
    if (connection === this.#connection) return this.#settle();
    const worse = this.#connection;
    if (worse?.provenAt) this.#records[worse.index] = { failures: 0, lived: Infinity };
    this.#connection = connection;
    this.#index = 0;
    worse?.end({ reason: "replaced", replaced: true });
    if (connection.welcome) this.#dispatch("frame", connection.welcome);
    if (connection.open) this.#beginSession(connection); // else a listener has closed the client
  }

  /**
   * Subscribe again in a new session.
   *
   * @param {Connection} connection
   */
  #beginSession(connection) {
    const { index, shared, welcome, queried, queryStart, knewHistory } = connection;
    const hasHistory = !shared && !!welcome?.features?.includes("history");
    if (hasHistory && !knewHistory && queried.length) {
      // Its query has no history.
      this.#hasHistory = true;
      return connection.end({ reason: "history", retry: 0, chosen: true });
    }
    const mayMiss = !(connection instanceof SharedConnection) || connection.hasNewLeader;
    if (connection instanceof SharedConnection) connection.hasNewLeader = false;
    for (const interest of this.#interests.values()) {
      const after = this.#positionOf(interest);
      interest.missed ||= mayMiss && !!(interest.reply || after);
      Object.assign(interest, { after, isLive: false, reply: null, caughtUp: null });
      interest.from ??= "new";
    }
    this.#hasHistory = hasHistory;
    this.#cover([...this.#interests.values()], {});
    this.#cover(queried, queryStart);
    this.#batchSize = MAX_PATTERNS;
    this.#commandFailures = 0;
    this.#silentAt = Infinity;
    this.#clockOffset = Date.now() - now();
    const why = index ? this.status.why : "";
    const transport = this.#transport;
    this.#setStatus({ state: "subscribing", transport, shared, nats: welcome?.nats, why, reason: "", retry: 0 });
    this.#checkSilence();
    this.#wake(); // #sync may wait before it repeats a command of the session before
    this.#sync();
  }

  /** Set the status to "connected" if data passes, and every subscription has its reply. */
  #settle() {
    if (!this.#connection?.provenAt || !this.#connection.healthy || this.status.state !== "subscribing") return;
    for (const { subscriptions, reply } of this.#interests.values()) if (subscriptions.size && !reply) return;
    this.#setStatus({ state: "connected", reason: "", retry: 0 });
  }

  /** End a connection whose keepalive is missing. */
  #checkSilence() {
    clearTimeout(this.#keepaliveTimer);
    const connection = this.#connection;
    if (!connection?.welcome) return;
    const heartbeat = 1000 * connection.welcome.heartbeat;
    const limit = heartbeat * (connection.shared ? MAX_SHARED_SILENCE : MAX_SILENCE);
    const offset = Date.now() - now();
    // The device was asleep, or a clock was set. If the connection is alive, its next frame comes soon.
    if (offset - this.#clockOffset > SLEEP) this.#silentAt = now() + 1.25 * heartbeat;
    this.#clockOffset = offset;
    const silent = connection.healthy && now() > Math.min(connection.receivedAt + limit, this.#silentAt);
    // Only at the second look: frames that have come in a sleep are read after the first.
    if (silent && this.#suspectsSilence) return connection.end({ reason: "silence", silent });
    this.#suspectsSilence = silent;
    if (connection.index && now() > this.#remembered.until && !this.#probe?.open) {
      this.#rememberTransport(connection.index);
      this.#tryBetter(connection);
    }
    const pause = Math.min(heartbeat / 8, silent ? 1000 : 5000);
    this.#keepaliveTimer = startTimer(() => this.#checkSilence(), pause);
  }

  /**
   * Try the first transport beside the current connection.
   *
   * @param {Connection} connection
   */
  async #tryBetter(connection) {
    try {
      await this.#askCredentials();
    } catch {
      return; // the connection lives without
    }
    if (connection.open) this.#probe = this.#open(0);
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
      const connection = this.#connection;
      const { queryReply } = connection;
      connection.queryReply = null;
      const query = { action: /** @type {const} */ ("subscribe"), interests: connection.queried, start: connection.queryStart };
      /** @type {Batch} */
      const batch = queryReply ? query : this.#nextBatch();
      if (!batch.interests.length) break;
      if (queryReply || this.#canPost(connection, batch)) await this.#update(connection, batch, queryReply);
      else await this.#reopen(connection, batch);
    }
    this.#isSyncing = false;
    this.#settle();
  }

  /**
   * Return patterns to unsubscribe from, or else to subscribe to.
   *
   * @returns {Batch}
   */
  #nextBatch() {
    /** @type {Interest[]} */
    const unused = [];
    /** @type {Interest[]} */
    const missing = [];
    for (const interest of this.#interests.values()) {
      const { pattern, subscriptions, reply, isStale, missed } = interest;
      if (reply && (isStale || !subscriptions.size)) unused.push(interest);
      else if (!subscriptions.size) this.#interests.delete(pattern);
      else if (!reply && wantsPast(interest) && !this.#hasHistory && !missed) {
        this.#refuse(pattern, UNAVAILABLE, "The bridge has no history");
      } else if (!reply) missing.push(interest);
    }
    if (unused.length) return { action: "unsubscribe", interests: unused.slice(0, this.#batchSize), start: {} };
    const start = missing.length ? this.#startOf(missing[0]) : {};
    const key = JSON.stringify(start);
    const alike = missing.filter((interest) => JSON.stringify(this.#startOf(interest)) === key);
    return { action: "subscribe", interests: alike.slice(0, this.#batchSize), start };
  }

  /**
   * Return whether a command can be sent for the batch; a stream with another query may do the same.
   *
   * @param {Connection} connection
   * @param {Batch} batch
   */
  #canPost(connection, { action, interests }) {
    if (!(connection instanceof EventStreamConnection) || now() > this.#postsBlockedUntil) return true;
    const { queried } = this.#createQuery();
    return action === "subscribe" && !interests.some((interest) => queried.includes(interest));
  }

  /**
   * Open the event stream again, with what the page follows in its query, because commands don't get through.
   *
   * @param {Connection} connection
   * @param {Batch} batch
   */
  async #reopen(connection, { action, interests }) {
    if (action === "unsubscribe") {
      // The next stream won't have them.
      for (const interest of interests) interest.reply = null;
      return;
    }
    await this.#pause(1000 - (now() - connection.startedAt)); // for what the page follows next
    connection.end({ reason: this.status.reason || "POST is blocked", retry: 0, chosen: true });
  }

  /**
   * Send one command for the batch, and act on the reply.
   *
   * @param {Connection} connection
   * @param {Batch} batch
   * @param {Promise<any> | null} queryReply The reply to the query of the stream, if the batch was there.
   */
  async #update(connection, batch, queryReply) {
    const { welcome } = connection;
    const { action, interests, start } = batch;
    const held = action === "unsubscribe" && interests[0].reply;
    for (const interest of interests) interest.reply = null;
    if (!held) this.#cover(interests, start);
    const subjects = interests.map(({ pattern }) => pattern);
    const timer = startTimer(() => held || this.#setStatus({ state: "subscribing" }), SLOW_COMMAND);
    const reply = await (queryReply ?? connection.send({ action, subjects, ...start }));
    clearTimeout(timer);
    const { success, code = "internal", message = "no reply" } = reply; // a proxy's answer has no code
    if (this.welcome !== welcome) return;
    if (success) {
      this.#commandFailures = 0;
      this.#batchSize = MAX_PATTERNS;
      // The first reply on an event stream may be for what the bridge follows by itself. Then the others are asked for again.
      if (!held) this.#hold(interests.filter(({ pattern }) => reply.subjects.includes(pattern)), reply, start);
    } else if (code.startsWith("auth.")) {
      connection.end({ code: UNAUTHENTICATED, reason: message, final: true });
    } else if (BLOCKED_CODES.test(code) && !(code === "command.invalid" && typeof start.from === "object")) {
      const reason = code === "origin.forbidden" ? reportOrigin(this.#url.href) : `POST: ${message}`;
      if (!held) this.#setStatus({ state: "subscribing", reason });
      await this.#retryBlocked(connection, batch);
    } else if (TRANSIENT_CODES.test(code)) {
      if (held) this.#hold(interests, held);
      else this.#setStatus({ state: "subscribing", reason: message });
      if (code === "disconnected" && this.#commandFailures) return this.#retryBlocked(connection, batch);
      if (++this.#commandFailures > 3 && code === "session.unknown") connection.end({ reason: message });
      await this.#pause(reply.retry || backoff(this.#commandFailures));
    } else if (held) {
      if (interests.length > 1) {
        this.#hold(interests, held);
        this.#batchSize = 1;
      }
    } else {
      this.#narrow(subjects, reply.subjects ?? [], code, message);
    }
  }

  /**
   * Note that commands don't get through by POST. Wait, unless opening the stream again gets around that.
   *
   * @param {Connection} connection
   * @param {Batch} batch
   */
  async #retryBlocked(connection, batch) {
    this.#postsBlockedUntil = now() + Math.max(this.#options.retryBetter, MIN_BLOCKED);
    if (this.#canPost(connection, batch)) await this.#pause(backoff(++this.#commandFailures));
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
      this.#batchSize = Math.ceil(asked.length / 2) || 1;
    }
  }

  /**
   * Mark patterns as held by the session.
   *
   * @param {Interest[]} interests
   * @param {Api.Reply} reply
   * @param {Start} [start]
   */
  #hold(interests, reply, start) {
    const { resumable = !!start?.from, resumable_subjects: some = [] } = reply;
    for (const interest of interests) {
      const { pattern, subscriptions } = interest;
      interest.reply = reply;
      interest.key = "";
      for (const subscription of subscriptions) subscription.confirm(reply);
      if (start && !resumable && !some.includes(pattern)) this.#catchUp(interest);
    }
    this.#reportMissed(interests);
    for (const interest of interests) interest.missed = false;
  }

  /**
   * Dispatch a `gap` for what an earlier session held: from now on a page that loads its state again misses nothing.
   *
   * @param {Interest[]} interests
   */
  #reportMissed(interests) {
    const missed = interests.filter(({ missed, isCovered }) => missed && !isCovered);
    const subjects = missed.map(({ pattern }) => pattern);
    for (const interest of missed) interest.missed = false;
    if (subjects.length) this.#dispatch("gap", { type: "gap", subjects, lost: null, reason: "reconnect" });
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
    if (this.#drop(pattern, createError(code, message, { subjects }))) {
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
