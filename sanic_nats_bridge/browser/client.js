// The browser client of sanic-nats-bridge: docs/reference/client.md

const TYPES = ["welcome", "reply", "message", "gap", "unsubscribed", "status", "heartbeat", "close"];
const PRIVATE = /reply|unsubscribed|close/;
// The bridge's close codes: whether to come back
const CODES = { 1001: 1, 1002: 0, 1007: 0, 1009: 0, 1011: 1, 1013: 1, 4400: 0, 4401: 0, 4403: 0, 4429: 1 };
const PASSING = /disconnected|internal|limit.rate|nats.unavailable|session/;
const MOST = 64; // patterns in a command
const PATIENCE = 15_000;

// Full jitter, to spare a restarted server
const jitter = (failures) => 500 + Math.random() * Math.min(19_500, 1500 * 2 ** failures);
const failure = (code, message, subjects) => Object.assign(new Error(message), { code, subjects });
const memory = (key, value) => {
  try {
    if (value !== undefined) sessionStorage[key] = value;
    return sessionStorage[key];
  } catch {}
};

class Subscription {
  #readers = new Set();
  #promise;
  #on;
  #live;
  #end;

  constructor(pattern, callback, onended, leave) {
    this.pattern = pattern;
    this.ready = new Promise((resolve, reject) => (this.#promise = { resolve, reject }));
    this.ready.catch(() => {}); // others tell too
    this.#on = { callback, onended, leave };
  }

  unsubscribe() {
    this.#on.leave(this);
    this.finish();
  }

  [Symbol.asyncIterator]() {
    const reader = { queue: [] };
    this.#readers.add(reader);
    return this.#read(reader);
  }

  async *#read(reader) {
    try {
      while (true) {
        while (reader.queue.length) yield* reader.queue.splice(0);
        if (this.#end === true) return;
        if (this.#end) throw this.#end;
        await new Promise((resolve) => (reader.wake = resolve));
      }
    } finally {
      this.#readers.delete(reader);
      if (!this.#on.callback && !this.#readers.size) this.unsubscribe();
    }
  }

  deliver(message) {
    if (this.#end) return; // by another callback
    for (const reader of this.#readers) {
      reader.queue.push(message);
      reader.wake?.();
    }
    try {
      this.#on.callback?.(message.data, message);
    } catch (error) {
      queueMicrotask(() => { throw error; }); // reported
    }
  }

  settle(reply) {
    this.#live = true;
    this.#promise.resolve(reply);
  }

  finish(error) {
    if (this.#end) return;
    this.#end = (!this.#live && error) || true;
    this.#promise.reject(error ?? failure("closed", "Closed"));
    for (const { wake } of this.#readers) wake?.();
    const { onended } = this.#on;
    if (onended) queueMicrotask(() => onended(error)); // it may throw
    else if (error && !this.#readers.size) console.warn(error.message);
  }
}

class Link {
  open = true;
  #replies = new Map();
  #commands = 0;
  #ended;
  ended = new Promise((resolve) => (this.#ended = resolve));

  constructor(client) {
    this.client = client;
  }

  receive(frame) {
    if (!this.open) return;
    this.onframe(frame);
    const { type, id, reconnect } = frame;
    if (type === "reply") this.answer(id, frame);
    if (type === "close") this.end({ ...frame, final: !reconnect });
  }

  send(command) {
    const id = command.id ?? `#${++this.#commands}`;
    this.put({ ...command, id });
    return new Promise((resolve) => this.#replies.set(id, resolve));
  }

  answer(id, reply) {
    this.#replies.get(id)?.(reply, this.#replies.delete(id));
  }

  forget() {
    this.#replies.forEach((resolve) => resolve({ code: "disconnected" }));
  }

  end(how) {
    if (!this.open) return;
    this.open = false;
    this.welcome = null;
    this.close();
    this.forget();
    this.#ended(how);
  }
}

class WebSocketLink extends Link {
  start() {
    this.socket = new this.client.options.WebSocket(this.client.address("stream").replace("http", "ws"));
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    this.socket.onerror = () => {};
    this.socket.onclose = ({ code, reason }) => this.end({ code, reason: `${code} ${reason}`, final: CODES[code] === 0 });
  }

  put(command) {
    this.socket.send(JSON.stringify(command));
  }

  close() {
    this.socket?.close();
  }
}

class EventsLink extends Link {
  start() {
    const source = (this.source = new this.client.options.EventSource(this.client.address("events"), {
      withCredentials: true,
    }));
    for (const type of TYPES) source.addEventListener(type, ({ data }) => this.receive(JSON.parse(data)));
    source.onerror = () => (source.readyState === 2 ? this.#ask() : this.end({ reason: "ended" }));
  }

  // It does not tell why it has stopped
  async #ask() {
    const { status } = await this.#fetch("events", { method: "HEAD" }).catch(() => ({ status: 0 }));
    const final = /^4(?!08|29)/.test(status);
    this.end({ code: final && 4000 + status, reason: `HTTP ${status}`, final });
  }

  async put(command) {
    const path = command.action === "unsubscribe" ? "unsubscribe" : "subscribe";
    const headers = { "Content-Type": "application/json" };
    let reply = { code: "disconnected" };
    try {
      const body = JSON.stringify({ ...command, session: this.welcome.session });
      const response = await this.#fetch(path, { method: "POST", headers, body });
      const frame = await response.json();
      if (this.open) this.onframe(frame);
      reply = { ...frame, retry: 1000 * response.headers.get("retry-after") };
    } catch {}
    this.answer(command.id, reply);
  }

  #fetch(path, options) {
    const { client } = this;
    const signal = AbortSignal.timeout(PATIENCE);
    return client.options.fetch.call(null, client.address(path), { ...options, credentials: "include", signal });
  }

  close() {
    this.source?.close();
  }
}

// For several tabs: the one with the lock leads
class SharedLink extends Link {
  shared = true;
  #tab = crypto.randomUUID();
  #channel;
  #waiting = new AbortController();

  start() {
    const { client } = this;
    const { name, stale } = client;
    const lock = (...all) =>
      navigator.locks.request(...all).catch((error) => {
        client.shared &&= error.name === "AbortError"; // not where cookies are blocked
        this.end({ reason: `${error}`, retry: 0 });
      });
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    // By this lock the leader sees a tab go
    lock(this.#tab, () => (this.put(), this.ended));
    lock(name, stale ? { steal: true } : { signal: this.#waiting.signal }, () => this.open && lead(this));
  }

  put(command) {
    if (this.open) this.#channel.postMessage({ from: this.#tab, command });
  }

  #hear({ from, to = this.#tab, leads, status, frame, end }) {
    if (from || to !== this.#tab) return;
    clearTimeout(this.timer);
    if (leads) {
      this.welcome = null;
      this.forget();
      this.put();
    }
    if (status) this.onstatus(status);
    if (frame) this.receive(frame);
    if (end) this.end(end);
  }

  close() {
    this.#channel?.close();
    this.#waiting.abort();
  }
}

async function lead(link) {
  const { options, query, name } = link.client;
  const channel = new BroadcastChannel(name);
  const inner = new Client({ ...options, transports: ["sse"], share: undefined }, query);
  const tabs = new Map();
  const say = (what) => link.open && channel.postMessage(what);

  const follow = (held, subject) => {
    if (!held.has(subject)) held.set(subject, inner.subscribe(subject, null, () => held.delete(subject)));
    return held.get(subject).ready;
  };
  const carryOut = async (held, command) => {
    const { action = "subscribe", subjects, id } = command;
    if (!subjects?.length || !/^(un)?subscribe$/.test(action)) return inner.send(command);
    let reply;
    if (action === "subscribe") [reply] = await Promise.all(subjects.map((subject) => follow(held, subject)));
    else for (const subject of subjects) held.get(subject)?.unsubscribe();
    return { ...reply, type: "reply", id, action, success: true, subjects };
  };

  channel.onmessage = async ({ data: { from, command } }) => {
    if (!from) return;
    let held = tabs.get(from);
    if (!held) {
      tabs.set(from, (held = new Map()));
      navigator.locks.request(from, () => held.forEach((subscription) => subscription.unsubscribe()));
    }
    if (!command) return say({ to: from, status: inner.status, frame: inner.welcome });
    const frame = await carryOut(held, command).catch(({ code, message, subjects }) => ({
      type: "reply", id: command.id, success: false, code, message, subjects,
    }));
    say({ to: from, frame });
  };
  inner.addEventListener("frame", ({ detail }) => PRIVATE.test(detail.type) || say({ frame: detail }));
  inner.addEventListener("unsubscribed", ({ detail }) => say({ frame: detail }));
  inner.addEventListener("status", ({ detail }) => say({ status: detail }));
  inner.addEventListener("close", ({ detail }) => say({ end: detail }));
  say({ leads: true });
  await link.ended;
  channel.close();
  inner.close();
}

class Client extends EventTarget {
  status = { why: "" };
  stale;
  #entries = new Map();
  #link;
  #probe;
  #index;
  #best; // whether the first transport has
  #worked; // which has, and until when it is kept
  #failures = 0;
  #batch;
  #tries;
  #syncing;
  #heard;
  #suspect;
  #timer;
  #wake;
  #closed = new AbortController();

  constructor(options, query) {
    super();
    const { document, location, navigator, BroadcastChannel, WebSocket, EventSource, fetch } = globalThis;
    const transports = ["websocket", "sse"];
    this.options = { transports, timeout: 3000, retryBetter: 300_000, WebSocket, EventSource, fetch, ...options };
    const { url, share } = this.options;
    this.url = new URL(url ?? ".", url ? location?.href : import.meta.url).href.replace(/\/*$/, "/");
    this.name = `sanic-nats-bridge ${JSON.stringify([this.url, this.options.transports, share])}`;
    this.shared = share !== undefined && navigator?.locks && BroadcastChannel;
    this.query = query;
    const { signal } = this.#closed;
    const shown = () => document.hidden || (this.#wake?.(), this.#check());
    document?.addEventListener("visibilitychange", shown, { signal });
    const online = () => {
      this.#wake?.();
      if (this.welcome && !this.#link.shared) this.#link.end({ reason: "online", retry: 0 });
    };
    globalThis.addEventListener?.("online", online, { signal });
    this.#worked = JSON.parse(memory(this.name) ?? "[0, 0]");
    this.#choose();
    this.#run();
  }

  get welcome() {
    return this.#link?.welcome;
  }

  get #name() {
    return this.options.transports[this.#index];
  }

  subscribe(pattern, callback, onended) {
    const entry = this.#entries.get(pattern) ?? { pattern, users: new Set() };
    const subscription = new Subscription(pattern, callback, onended, (user) => entry.users.delete(user) && this.#sync());
    if (this.#closed.signal.aborted) subscription.finish(failure("closed", "Closed"));
    else this.#entries.set(pattern, entry);
    entry.users.add(subscription);
    if (entry.reply) subscription.settle(entry.reply);
    this.#sync();
    return subscription;
  }

  async send(command) {
    if (!this.welcome) throw failure("disconnected", "Not connected");
    return this.#link.send(command);
  }

  close() {
    this.#stop({ reason: "closed" });
  }

  address(path) {
    return `${this.url}${path}?${new URLSearchParams(this.query)}`;
  }

  async #run() {
    const { transports } = this.options;
    let renewed;
    while (!this.#closed.signal.aborted) {
      const how = await this.#connection();
      if (this.#closed.signal.aborted) return;
      const link = this.#link;
      this.#link = null;
      this.#probe?.end(how);
      this.#wake?.();
      if (Date.now() - link?.since > PATIENCE) this.#failures = renewed = 0;
      if (how.code === 4401 && this.options.credentials) {
        this.query = null;
        if (!renewed) how.retry = 0;
        renewed = true;
      } else if (how.final) {
        this.#stop(how);
        return this.#tell("close", how);
      } else if (link && !link.since && !(how.code in CODES) && transports[this.#index + 1]) {
        // Else the server may be away
        if (!this.#best || this.#failures > 2) {
          this.#set({ why: `${transports[this.#index++]}: ${how.reason}` });
          continue;
        }
      }
      const retry = how.retry ?? jitter(this.#failures++);
      this.#choose();
      const pause = this.#pause(retry);
      this.#set({ state: "waiting", reason: how.reason, retry });
      await pause;
    }
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => resolve(clearTimeout(timer));
    });
  }

  async #connection() {
    this.#set({ state: "connecting", transport: this.#name });
    try {
      this.query ??= (await this.options.credentials?.()) ?? {};
    } catch (error) {
      return { reason: `credentials: ${error}` };
    }
    if (this.#closed.signal.aborted) return;
    this.#link = this.#open(this.#index);
    let how;
    do how = await this.#link.ended;
    while (how.next);
    return how;
  }

  #open(index) {
    const { transports, timeout } = this.options;
    const link = new (transports[index] === "websocket" ? WebSocketLink : this.shared ? SharedLink : EventsLink)(this);
    const patience = index + 1 < transports.length ? timeout : PATIENCE;
    link.index = index;
    link.timer = setTimeout(() => link.end({ reason: `no welcome in ${patience} ms`, silent: true }), patience);
    link.ended.then(({ silent }) => {
      clearTimeout(link.timer);
      this.stale = link.shared && silent;
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

  #choose() {
    const [index, until] = this.#worked;
    this.#index = Date.now() < until ? index : 0;
    if (this.#index) this.status.why ||= "remembered";
  }

  #remember(index) {
    this.#worked = [index, Date.now() + this.options.retryBetter];
    memory(this.name, JSON.stringify(this.#worked));
  }

  // By the clock: timers sleep
  #check() {
    clearTimeout(this.#timer);
    const link = this.#link;
    if (!link?.welcome) return;
    const beat = 1000 * link.welcome.heartbeat;
    // A leader notices first
    const limit = (link.shared ? 3 : 1.75) * beat;
    const silent = this.status.state === "connected" && Date.now() - this.#heard > limit;
    if (silent && this.#suspect) return link.end({ reason: "silence", silent });
    this.#suspect = silent; // frames may wait behind a timer
    if (link.index && Date.now() > this.#worked[1] && !this.#probe?.open) {
      this.#remember(link.index);
      this.#probe = this.#open(0);
    }
    this.#timer = setTimeout(() => this.#check(), Math.min(beat / 8, silent ? 1000 : 5000));
  }

  #stop(how) {
    const { reason, code, final } = how;
    this.#closed.abort();
    for (const link of [this.#link, this.#probe]) link?.end(how);
    clearTimeout(this.#timer);
    this.#wake?.();
    this.#set({ state: "closed", reason, code });
    for (const pattern of this.#entries.keys()) this.#drop(pattern, final && failure("closed", reason));
  }

  #receive(link, frame) {
    const { type, pattern, subject, subjects, nats, code, message } = frame;
    if (type === "welcome") this.#adopt(link, frame);
    if (link !== this.#link) return;
    this.#heard = Date.now();
    this.#suspect = false;
    this.#tell("frame", frame);
    if (!link.open) return;
    if (type === "message") {
      new Set(this.#entries.get(pattern ?? subject)?.users).forEach((user) => user.deliver(frame));
    } else if (type === "welcome") {
      this.#begin(link);
    } else if (type === "status") {
      this.#set({ nats });
    } else if (type === "gap") {
      this.#tell("gap", frame);
    } else if (type === "unsubscribed") {
      for (const subject of subjects) this.#refuse(subject, code, message);
    }
  }

  #adopt(link, welcome) {
    clearTimeout(link.timer);
    link.welcome = welcome;
    link.since ??= Date.now();
    this.#best ||= !link.index;
    if (!link.index || Date.now() > this.#worked[1]) this.#remember(link.index);
    if (link === this.#link) return;
    const worse = this.#link;
    this.#link = link;
    this.#index = 0;
    worse?.end({ next: true });
  }

  #begin({ index, shared, welcome: { nats } }) {
    const missed = [];
    for (const entry of this.#entries.values()) {
      if (entry.reply && entry.users.size) missed.push(entry.pattern);
      entry.reply = null;
    }
    this.#batch = MOST;
    this.#tries = 0;
    const why = index ? this.status.why : "";
    this.#set({ state: "connected", transport: this.#name, shared: !!shared, nats, why, reason: "", retry: 0 });
    if (missed.length) this.#tell("gap", { type: "gap", subjects: missed, lost: null, reason: "reconnect" });
    this.#check();
    this.#sync();
  }

  #set(change) {
    if (Object.entries(change).every(([name, value]) => this.status[name] === value)) return;
    this.status = { ...this.status, ...change };
    this.#tell("status", this.status);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // Step by step the session holds what is wanted
  async #sync() {
    if (this.#syncing) return;
    this.#syncing = true;
    await null; // the rest of this turn goes with it
    for (let batch; this.welcome && (batch = this.#next()).length; ) await this.#step(this.#link, batch);
    this.#syncing = false;
  }

  #next() {
    const [gone, wanted] = [[], []];
    for (const entry of this.#entries.values()) {
      if (entry.users.size) entry.reply || wanted.push(entry);
      else if (entry.reply) gone.push(entry);
      else this.#entries.delete(entry.pattern);
    }
    return (gone.length ? gone : wanted).slice(0, this.#batch);
  }

  async #step(link, batch) {
    const { welcome } = link;
    const held = batch[0].reply;
    for (const entry of batch) entry.reply = null;
    const subjects = batch.map(({ pattern }) => pattern);
    const reply = await link.send({ action: held ? "unsubscribe" : "subscribe", subjects });
    const { success, code = "internal", message } = reply; // what has none is a proxy's
    if (this.welcome !== welcome) return;
    if (success) {
      this.#tries = 0;
      this.#batch = MOST;
      if (!held) this.#hold(batch, reply);
    } else if (code.startsWith("auth.")) {
      link.end({ code: 4401, reason: message, final: true });
    } else if (PASSING.test(code)) {
      if (held) this.#hold(batch, held);
      if (++this.#tries > 3 && code === "session.unknown") link.end({ reason: message });
      await this.#pause(reply.retry || jitter(this.#tries));
    } else if (!held) {
      const named = subjects.filter((subject) => reply.subjects?.includes(subject));
      if (!batch[1]) this.#refuse(subjects[0], code, message);
      else if (named[0] && batch[named.length]) named.forEach((subject) => this.#refuse(subject, code, message));
      else this.#batch = Math.ceil(batch.length / 2);
    } else if (batch.length > 1) {
      this.#hold(batch, held);
      this.#batch = 1;
    }
  }

  #hold(batch, reply) {
    for (const entry of batch) {
      entry.reply = reply;
      entry.users.forEach((user) => user.settle(reply));
    }
  }

  #refuse(pattern, code, message) {
    const subjects = [pattern];
    if (this.#drop(pattern, failure(code, message, subjects)))
      this.#tell("unsubscribed", { type: "unsubscribed", subjects, code, message });
  }

  #drop(pattern, error) {
    this.#entries.get(pattern)?.users.forEach((user) => user.finish(error));
    return this.#entries.delete(pattern);
  }
}

export const connect = (options) => new Client(options);
