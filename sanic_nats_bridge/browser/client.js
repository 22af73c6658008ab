// Follows NATS subjects through sanic-nats-bridge. How to use it: docs/client.md; what goes over the wire: docs/protocol.md.

const TYPES = ["welcome", "reply", "message", "gap", "unsubscribed", "status", "heartbeat", "close"];
// By these close codes the bridge itself answers; any other before the welcome comes from what stands between.
const ANSWERS = [1001, 1009, 1011, 1013, 4401, 4403, 4429];
const FINAL = [1002, 1007, 1009, 4401, 4403];
const PASSING = ["disconnected", "limit.rate", "session.unknown", "session.unreachable", "nats.unavailable", "internal"];
const PASSING_STATUSES = [408, 425, 429];
const SHARED = ["welcome", "message", "gap", "status", "heartbeat"];
const MOST_PATTERNS = 64; // in one command, which must stay below max_command_bytes
const MOST_TRIES = 3;
const PATIENCE = 15_000;
const STEADY = 10_000;

/** Full jitter between 0.5 and 20 s, so that the clients of a restarted server do not come back at one moment. */
const jitter = (failures) => 500 + Math.random() * (Math.min(20_000, 2000 * 2 ** failures) - 500);
const failure = ({ code, message, subjects }) => Object.assign(new Error(message), { code, subjects });
const failed = (code, message, subjects) => ({ type: "reply", success: false, code, message, subjects });

// What only the client does with a subscription.
let deliver, settle, finish;

/** One caller's interest in a pattern. */
class Subscription {
  #callback;
  #onended;
  #leave;
  #resolve;
  #reject;
  #readers = new Set();
  #live = false;
  #end;

  constructor(pattern, callback, onended, leave) {
    this.pattern = pattern;
    this.#callback = callback;
    this.#onended = onended;
    this.#leave = leave;
    this.ready = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.ready.catch(() => {}); // whoever does not look at it has onended, or the console
  }

  unsubscribe() {
    this.#leave(this);
    finish(this);
  }

  /** The messages from now on. Leaving the loop unsubscribes, where nobody else uses the subscription. */
  [Symbol.asyncIterator]() {
    const queue = [];
    const reader = { push: (message) => (queue.push(message), reader.wake?.()), wake: null };
    this.#readers.add(reader);
    return this.#read(queue, reader);
  }

  async *#read(queue, reader) {
    try {
      while (true) {
        while (queue.length) yield queue.shift();
        if (this.#end?.refusal) throw this.#end.refusal;
        if (this.#end) return;
        await new Promise((resolve) => (reader.wake = resolve));
      }
    } finally {
      this.#readers.delete(reader);
      if (!this.#callback && !this.#readers.size) this.unsubscribe();
    }
  }

  static {
    deliver = (subscription, message) => {
      for (const reader of subscription.#readers) reader.push(message);
      try {
        subscription.#callback?.(message.data, message);
      } catch (error) {
        queueMicrotask(() => { throw error; }); // reported, without harm to the other callbacks
      }
    };
    settle = (subscription, reply) => {
      subscription.#live = true;
      subscription.#resolve(reply);
    };
    finish = (subscription, error) => {
      if (subscription.#end) return;
      subscription.#end = { refusal: !subscription.#live && error };
      subscription.#reject(error ?? failure({ code: "closed", message: "Unsubscribed" }));
      if (error && !subscription.#onended && !subscription.#readers.size) console.warn(error.message);
      for (const reader of subscription.#readers) reader.wake?.();
      subscription.#onended?.(error);
    };
  }
}

/** One connection, by whichever transport. */
class Link {
  #ended;
  /** How it ended: `code` and `reason` where known, `retry` in ms, `final` where one must not come back. */
  ended = new Promise((resolve) => (this.#ended = resolve));
  open = true;
  welcome;
  replies = new Map();
  commands = 0;

  constructor(client) {
    this.client = client;
  }

  receive(frame) {
    if (!this.open) return;
    this.onframe(frame);
    if (frame.type === "close") this.end({ ...frame, final: !frame.reconnect });
  }

  end(how) {
    if (!this.open) return;
    this.open = false;
    this.close();
    this.forget();
    this.#ended(how);
  }

  /** Resolves with the reply that comes under this id. */
  await(id) {
    return new Promise((resolve) => this.replies.set(id, resolve));
  }

  answer(id, reply) {
    this.receive(reply);
    this.replies.get(id)?.(reply);
    this.replies.delete(id);
  }

  /** No reply will come any more. */
  forget() {
    for (const resolve of this.replies.values()) resolve(failed("disconnected", "The connection is lost"));
    this.replies.clear();
  }
}

class WebSocketLink extends Link {
  start() {
    this.socket = new this.client.options.WebSocket(this.client.address("stream").replace(/^http/, "ws"));
    this.socket.onmessage = ({ data }) => this.#read(JSON.parse(data));
    this.socket.onclose = ({ code, reason }) =>
      this.end({ code, reason: reason || `closed (${code})`, final: FINAL.includes(code) });
    this.socket.onerror = () => {};
  }

  #read(frame) {
    if (frame.type === "reply") this.answer(frame.id, frame);
    else this.receive(frame);
  }

  send(command) {
    const id = command.id ?? `#${++this.commands}`;
    this.socket.send(JSON.stringify({ ...command, id }));
    return this.await(id);
  }

  close() {
    this.socket?.close();
  }
}

class EventsLink extends Link {
  start() {
    this.source = new this.client.options.EventSource(this.client.address("events"), { withCredentials: true });
    for (const type of TYPES) this.source.addEventListener(type, ({ data }) => this.receive(JSON.parse(data)));
    this.source.onerror = () =>
      this.source.readyState === 2 ? this.#ask() : this.end({ reason: "The stream has ended" });
  }

  /** An EventSource does not say why it has stopped for good: ask. */
  async #ask() {
    try {
      const { status } = await this.#fetch("events", { method: "HEAD", cache: "no-store" });
      const passing = status < 400 || status >= 500 || PASSING_STATUSES.includes(status);
      this.end(passing ? { reason: `HTTP ${status}` } : { code: 4000 + status, reason: `HTTP ${status}`, final: true });
    } catch (error) {
      this.end({ reason: error.message });
    }
  }

  async send(command) {
    const body = JSON.stringify({ ...command, session: this.welcome?.session });
    let reply;
    try {
      const response = await this.#fetch(command.action === "unsubscribe" ? "unsubscribe" : "subscribe", {
        method: "POST", body, headers: { "Content-Type": "application/json" },
      });
      const seconds = response.headers.get("retry-after");
      reply = { ...(await response.json()), ...(seconds && { retry: 1000 * seconds }) };
    } catch (error) {
      return failed("disconnected", error.message);
    }
    this.receive(reply);
    return reply;
  }

  #fetch(path, options) {
    const { client } = this;
    return client.options.fetch(client.address(path), {
      ...options, credentials: "include", signal: AbortSignal.timeout(PATIENCE),
    });
  }

  close() {
    this.source?.close();
  }
}

/** The event stream of several tabs: the one that holds the lock has it, and passes on what comes. */
class SharedLink extends Link {
  shared = true;
  #channel;
  #waiting = new AbortController();
  #tab = crypto.randomUUID();

  constructor(client, steal) {
    super(client);
    this.steal = steal;
  }

  start() {
    const { locks } = navigator;
    const { shared: name } = this.client;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    // The leader asks for it too, and so learns that this tab is gone, whatever has become of it.
    locks.request(this.#tab, () => (this.#say({}), this.ended));
    locks
      .request(name, this.steal ? { steal: true } : { signal: this.#waiting.signal }, () => this.open && lead(this, name))
      .catch((error) => this.end({ reason: error.message, retry: 0 }));
  }

  #say(what) {
    if (this.open) this.#channel.postMessage({ from: this.#tab, ...what });
  }

  #hear({ from, to, leads, number, reply, status, frame, end }) {
    if (from || (to && to !== this.#tab)) return;
    clearTimeout(this.timer);
    if (leads) {
      this.welcome = undefined;
      this.forget();
      this.#say({});
    }
    if (status) this.onstatus(status);
    if (frame) this.receive(frame);
    if (reply) this.answer(number, reply);
    if (end) this.end(end);
  }

  send(command) {
    const number = ++this.commands;
    this.#say({ number, command });
    return this.await(number);
  }

  close() {
    this.#channel?.close();
    this.#waiting.abort();
  }
}

/** Serve the stream to all tabs until the link of this one ends. */
async function lead(link, name) {
  const channel = new BroadcastChannel(name);
  const inner = new Client({ ...link.client.options, transports: ["sse"], share: undefined }, link.client.query);
  const tabs = new Map();
  let say = (what) => channel.postMessage(what);

  const follow = async (to, held, subjects) => {
    const added = subjects.filter((subject) => !held.has(subject));
    for (const subject of added) {
      let live = false;
      const ended = (error) => {
        if (held.get(subject) !== subscription) return;
        held.delete(subject);
        if (error && live) say({ to, frame: { ...failed(error.code, error.message, [subject]), type: "unsubscribed" } });
      };
      const subscription = inner.subscribe(subject, undefined, ended);
      held.set(subject, subscription);
      subscription.ready.then(() => (live = true), () => {});
    }
    try {
      const replies = await Promise.all(subjects.map((subject) => held.get(subject).ready));
      return { ...replies[0], subjects, active: replies.every(({ active }) => active) };
    } catch (error) {
      for (const subject of added) held.get(subject)?.unsubscribe();
      return failed(error.code, error.message, error.subjects);
    }
  };
  const leave = (held, subjects) => {
    const missing = subjects.filter((subject) => !held.has(subject));
    if (missing.length) return failed("subject.not_subscribed", `Not subscribed to: ${missing}`, missing);
    for (const subject of subjects) held.get(subject).unsubscribe();
    return { type: "reply", action: "unsubscribe", success: true, message: "Unsubscribed", subjects };
  };

  channel.onmessage = async ({ data: { from, number, command } }) => {
    if (!from) return;
    if (!tabs.has(from)) {
      const held = new Map();
      tabs.set(from, held);
      navigator.locks.request(from, () => tabs.delete(from) && held.forEach((subscription) => subscription.unsubscribe()));
    }
    if (!command) return say({ to: from, status: inner.status, frame: inner.welcome });
    const { action = "subscribe", subjects, id } = command;
    const known = Array.isArray(subjects) && subjects.length && { subscribe: true, unsubscribe: true }[action];
    const reply = !known
      ? await inner.send(command).catch((error) => failed(error.code, error.message))
      : action === "subscribe" ? await follow(from, tabs.get(from), subjects) : leave(tabs.get(from), subjects);
    say({ to: from, number, reply: { ...reply, id } });
  };
  inner.addEventListener("frame", ({ detail }) => SHARED.includes(detail.type) && say({ frame: detail }));
  inner.addEventListener("status", ({ detail }) => say({ status: detail }));
  inner.addEventListener("close", ({ detail }) => say({ end: detail }));
  say({ leads: true });
  await link.ended;
  say = () => {};
  channel.close();
  inner.close();
}

/** What `connect` gives: comes back by itself until it is closed, or told not to. */
class Client extends EventTarget {
  /** @type {any} */
  status = { state: "connecting", transport: null, shared: false, nats: null, why: "", reason: "" };
  #entries = new Map();
  #link = null;
  #probe = null;
  #index = 0;
  #worked = new Set();
  #failures = 0;
  #batch = MOST_PATTERNS;
  #tries = 0;
  #syncing = false;
  #heard = 0;
  #suspect = false;
  #steal = false;
  #until = 0; // when a better transport is tried again
  #closed = new AbortController();
  #wake;

  constructor(options, query) {
    super();
    const { location, WebSocket, EventSource } = globalThis;
    this.options = {
      transports: ["websocket", "sse"], timeout: 3000, retryBetter: 300_000,
      WebSocket, EventSource, fetch: (...all) => fetch(...all), ...options,
    };
    const { url, transports, share, fallback } = this.options;
    this.url = new URL(url ?? ".", url === undefined ? import.meta.url : location?.href).href.replace(/\/*$/, "/");
    this.query = query;
    if (share !== undefined && globalThis.navigator?.locks && globalThis.BroadcastChannel)
      this.shared = JSON.stringify(["sanic-nats-bridge", this.url, transports, share]);
    this.#listen();
    this.#index = this.#preferred();
    if (this.#index) this.status.why = "it has worked before in this tab";
    this.#run();
  }

  get welcome() {
    return this.#link?.welcome;
  }

  subscribe(pattern, callback, onended) {
    let entry = this.#entries.get(pattern);
    if (!entry) this.#entries.set(pattern, (entry = { pattern, users: new Set(), reply: null }));
    const leave = (user) => entry.users.delete(user) && this.#sync();
    const subscription = new Subscription(pattern, callback, onended, leave);
    if (this.#closed.signal.aborted) finish(subscription, failure({ code: "closed", message: "The client is closed" }));
    else entry.users.add(subscription);
    if (entry.reply) settle(subscription, entry.reply);
    else this.#sync();
    return subscription;
  }

  /** Send a command as it is, and have its reply, a failed one too. */
  async send(command) {
    if (!this.welcome) throw failure({ code: "disconnected", message: "Not connected" });
    return this.#link.send(command);
  }

  close() {
    this.#stop({ reason: "closed by the page" });
  }

  address(path) {
    const address = new URL(path, this.url);
    for (const [name, value] of Object.entries(this.query ?? {})) address.searchParams.set(name, value);
    return address.href;
  }

  // Connections

  async #run() {
    let renewed = false;
    while (!this.#closed.signal.aborted) {
      const how = await this.#connection();
      if (this.#closed.signal.aborted) return;
      const link = this.#link;
      this.#link = null;
      if (link?.welcome && Date.now() - link.since > STEADY) this.#failures = renewed = 0;
      if (how.code === 4401 && this.options.credentials) {
        this.query = undefined;
        if (!renewed) how.retry = 0;
        renewed = true;
      } else if (how.final) {
        this.#stop(how);
        return this.#tell("close", how);
      } else if (link && !link.since && this.#blocked(how)) {
        this.#set({ why: `${this.#name} failed: ${how.reason}` });
        this.#index += 1;
        continue;
      }
      const retry = how.retry ?? jitter(this.#failures++);
      this.#index = this.#preferred();
      this.#set({ state: "waiting", reason: how.reason, retry });
      await this.#pause(retry);
    }
  }

  /** One connection from its beginning to its end. */
  async #connection() {
    this.#set({ state: "connecting", transport: this.#name, shared: false });
    try {
      this.query ??= (await this.options.credentials?.()) ?? {};
    } catch (error) {
      return { reason: `credentials failed: ${error.message}` };
    }
    if (this.#closed.signal.aborted) return {};
    this.#link = this.#open(this.#index);
    let how;
    do how = await this.#link.ended;
    while (how.next);
    return how;
  }

  /** Whether the next transport may get through where this one did not. */
  #blocked({ code }) {
    const { transports } = this.options;
    // One that has worked is given a second chance: it may be the server that is away.
    const spent = !this.#worked.has(this.#name) || this.#failures > 0;
    return spent && !ANSWERS.includes(code) && this.#index + 1 < transports.length;
  }

  #open(index) {
    const { transports, timeout } = this.options;
    const kind = transports[index] === "websocket" ? WebSocketLink : this.shared ? SharedLink : EventsLink;
    const link = new kind(this, this.#steal);
    const patience = index + 1 < transports.length ? timeout : PATIENCE;
    link.index = index;
    link.timer = setTimeout(() => link.end({ reason: `no welcome within ${patience / 1000} s`, silent: true }), patience);
    link.ended.then(({ silent }) => {
      clearTimeout(link.timer);
      this.#steal = link.shared && silent;
    });
    link.onframe = (frame) => this.#receive(link, frame);
    link.onstatus = ({ state, nats, reason, retry }) => this.#set({ state, nats, reason, retry });
    try {
      link.start();
    } catch (error) {
      link.end({ reason: error.message });
    }
    return link;
  }

  get #name() {
    return this.options.transports[this.#index];
  }

  /** Where to begin: with the first transport, or for a while with that which worked when the first did not. */
  #preferred() {
    try {
      const { name, until } = JSON.parse(sessionStorage.getItem(`sanic-nats-bridge ${this.url}`)) ?? {};
      if (name) [this.#until, this.#worse] = [until, name];
    } catch {}
    return Date.now() < this.#until ? Math.max(0, this.options.transports.indexOf(this.#worse)) : 0;
  }

  #worse;

  #remember(index) {
    this.#worse = this.options.transports[index];
    this.#until = index ? Date.now() + this.options.retryBetter : 0;
    try {
      sessionStorage.setItem(`sanic-nats-bridge ${this.url}`, JSON.stringify({ name: this.#worse, until: this.#until }));
    } catch {} // no storage here: it holds as long as the page
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => (clearTimeout(timer), resolve());
    });
  }

  #listen() {
    const { signal } = this.#closed;
    const returned = () => {
      if (document.hidden) return;
      this.#wake?.();
      this.#check();
    };
    globalThis.addEventListener?.("online", () => {
      this.#wake?.();
      // What was open over another network, or before it was cut, is dead as a rule.
      if (!this.#link?.shared && this.welcome) this.#link.end({ reason: "the network is back", retry: 0 });
    }, { signal });
    for (const type of ["visibilitychange", "resume"]) globalThis.document?.addEventListener(type, returned, { signal });
  }

  /** Clocks are compared, because timers stand still while a machine sleeps. */
  #check() {
    clearTimeout(this.#timer);
    const link = this.#link;
    if (!link?.welcome) return;
    const beat = 1000 * link.welcome.heartbeat;
    const silent = Date.now() - this.#heard > 1.75 * beat && this.status.state === "connected";
    if (silent && this.#suspect) return link.end({ reason: "nothing was heard any more", silent: true });
    // After a sleep the timer may come before the frames that have waited.
    this.#suspect = silent;
    if (link.index && Date.now() > this.#until && !this.#probe) this.#tryBetter(link.index);
    this.#timer = setTimeout(() => this.#check(), Math.min(beat / 8, silent ? 1000 : 5000));
  }

  #timer;

  async #tryBetter(index) {
    const probe = (this.#probe = this.#open(0));
    const welcomed = new Promise((resolve) => (probe.onwelcome = resolve));
    await Promise.race([probe.ended, welcomed]);
    this.#probe = null;
    if (!probe.since) this.#remember(index);
  }

  #stop(how) {
    if (this.#closed.signal.aborted) return;
    this.#closed.abort();
    this.#link?.end(how);
    this.#probe?.end(how);
    this.#link = null;
    clearTimeout(this.#timer);
    this.#wake?.();
    this.#set({ state: "closed", reason: how.reason, code: how.code });
    const error = how.final && failure({ code: "closed", message: how.reason });
    for (const pattern of [...this.#entries.keys()]) this.#drop(pattern, error);
  }

  // Frames

  #receive(link, frame) {
    if (frame.type === "welcome") this.#adopt(link, frame);
    if (link !== this.#link) return;
    this.#heard = Date.now();
    this.#suspect = false;
    this.#tell("frame", frame);
    const { type, pattern, subject, subjects, nats } = frame;
    if (type === "message") {
      for (const user of [...(this.#entries.get(pattern ?? subject)?.users ?? [])]) deliver(user, frame);
    } else if (type === "welcome") {
      this.#begin(link, frame);
    } else if (type === "status") {
      this.#set({ nats });
    } else if (type === "gap") {
      const own = link.shared ? subjects.filter((subject) => this.#entries.has(subject)) : subjects;
      if (own.length) this.#tell("gap", { ...frame, subjects: own });
    } else if (type === "unsubscribed") {
      for (const subject of subjects) this.#drop(subject, failure({ ...frame, subjects: [subject] }));
      this.#tell("unsubscribed", frame);
    }
  }

  #adopt(link, welcome) {
    clearTimeout(link.timer);
    link.welcome = welcome;
    link.since ??= Date.now();
    link.onwelcome?.();
    this.#worked.add(this.options.transports[link.index]);
    if (link === this.#link) {
      if (!link.index || Date.now() > this.#until) this.#remember(link.index);
      return;
    }
    // A better transport came through.
    const old = this.#link;
    this.#link = link;
    this.#index = link.index;
    this.#remember(link.index);
    this.#set({ why: "" });
    old?.end({ next: link });
  }

  /** Each welcome is a new session, which holds nothing yet. */
  #begin(link, { nats }) {
    const missed = [];
    for (const entry of this.#entries.values()) {
      if (entry.reply && entry.users.size) missed.push(entry.pattern);
      entry.reply = null;
    }
    this.#batch = MOST_PATTERNS;
    this.#tries = 0;
    const why = link.index || this.options.transports.length > 1 ? this.status.why : "no other was asked for";
    const transport = this.options.transports[link.index];
    this.#set({ state: "connected", transport, shared: !!link.shared, nats, why, reason: "", retry: undefined });
    if (missed.length) this.#tell("gap", { type: "gap", subjects: missed, lost: null, reason: "reconnect" });
    this.#check();
    this.#sync();
  }

  #set(change) {
    const status = { ...this.status, ...change };
    if (Object.keys(status).every((name) => status[name] === this.status[name])) return;
    this.status = status;
    this.#tell("status", status);
  }

  #tell(type, detail) {
    this.dispatchEvent(Object.assign(new Event(type), { detail }));
  }

  // Commands: the session is brought, step by step, to hold what is wanted

  async #sync() {
    if (this.#syncing) return;
    this.#syncing = true;
    await null; // the other commands of this turn go with it
    for (let batch; this.welcome && (batch = this.#next()).length; ) await this.#step(this.#link, batch);
    this.#syncing = false;
  }

  #next() {
    const entries = [...this.#entries.values()];
    for (const { pattern, users, reply } of entries) if (!users.size && !reply) this.#entries.delete(pattern);
    const gone = entries.filter(({ users, reply }) => !users.size && reply);
    const wanted = entries.filter(({ users, reply }) => users.size && !reply);
    return (gone.length ? gone : wanted).slice(0, this.#batch);
  }

  async #step(link, batch) {
    const { welcome } = link;
    const held = batch[0].reply;
    const action = held ? "unsubscribe" : "subscribe";
    for (const entry of batch) entry.reply = null;
    const reply = await link.send({ action, subjects: batch.map(({ pattern }) => pattern) });
    if (this.welcome !== welcome) return;
    if (reply.success) {
      this.#tries = 0;
      this.#batch = Math.min(MOST_PATTERNS, 2 * this.#batch);
      if (!held) this.#hold(batch, reply);
    } else if (this.#passes(reply.code)) {
      if (held) this.#hold(batch, held);
      await this.#later(link, reply);
    } else if (!held) {
      this.#refuse(batch, reply);
    } else if (batch.length > 1) {
      this.#hold(batch, held);
      this.#batch = 1;
    }
  }

  #hold(batch, reply) {
    for (const entry of batch) {
      entry.reply = reply;
      for (const user of entry.users) settle(user, reply);
    }
  }

  #passes(code) {
    if (code === "internal") return this.#tries < MOST_TRIES;
    return PASSING.includes(code) || (`${code}`.startsWith("auth.") && this.options.credentials);
  }

  async #later(link, { code, message, retry }) {
    if (++this.#tries > MOST_TRIES && code === "session.unknown") return link.end({ reason: message });
    if (`${code}`.startsWith("auth.")) {
      try {
        this.query = (await this.options.credentials()) ?? {};
      } catch {}
    }
    let timer;
    const pause = new Promise((resolve) => (timer = setTimeout(resolve, retry ?? jitter(this.#tries - 1))));
    await Promise.race([link.ended, pause]);
    clearTimeout(timer);
  }

  /** A command is refused whole: let that reach only those who have asked for what is refused. */
  #refuse(batch, reply) {
    const named = batch.filter(({ pattern }) => reply.subjects?.includes(pattern));
    const blamed = batch.length === 1 ? batch : named.length < batch.length ? named : [];
    if (!blamed.length) this.#batch = Math.ceil(batch.length / 2);
    for (const { pattern } of blamed) {
      const subjects = [pattern];
      this.#drop(pattern, failure({ ...reply, subjects }));
      this.#tell("unsubscribed", { type: "unsubscribed", subjects, code: reply.code, message: reply.message });
    }
  }

  #drop(pattern, error) {
    const entry = this.#entries.get(pattern);
    this.#entries.delete(pattern);
    for (const user of entry?.users ?? []) finish(user, error);
  }
}

export const connect = (options = {}) => new Client(options);
