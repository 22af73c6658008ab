// Tabs that share an event stream, simulated. Each runs share.js with a channel, locks, timers and clocks of its own.
//
// Time is virtual. Everything that one part of the browser sends to another takes a while, and keeps its order only
// within that way. After a tab was suspended, it reads what has come on each way in order, but mixes the ways.
import { setMaxListeners } from "node:events";

const HEARTBEAT = 2000;
const WELCOME_TIMEOUT = 15_000; // as in client.js

setMaxListeners(0); // of a signal

/** Return a generator of pseudo-random numbers (mulberry32). */
export function createRandom(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Return the faults of a tab: messages that come twice or out of order, or are missing without a gap. */
function findFaults({ id, log }) {
  const faults = [];
  let last = 0;
  let mayMiss = true;
  for (const entry of log) {
    if (entry !== "gap") {
      if (entry <= last) faults.push(`${id}: ${entry} after ${last}`);
      else if (entry > last + 1 && !mayMiss) faults.push(`${id}: ${entry} after ${last}, without a gap`);
      last = entry;
    }
    mayMiss = entry === "gap";
  }
  return faults;
}

/** The browser, the server, and the time. */
export class World {
  now = 0;
  tabs = [];
  /** The event streams that are open. */
  streams = new Set();
  channels = new Set();
  /** The messages that were sent by channels. */
  posts = [];
  published = 0;
  /**
   * Return the milliseconds of a way; a test may replace it.
   *
   * The kind is `channel`, `locks`, `stream` or `request`. The ends are tabs; one that isn't is missing.
   */
  delay = (_ends) => this.random() * 50;
  #locks = new Map();
  #events = [];
  #ids = 0;

  constructor(source, random) {
    this.source = source;
    this.random = random;
  }

  createId() {
    return `id-${++this.#ids}`;
  }

  /** Call a function after a time. */
  after(milliseconds, callback) {
    const at = this.now + milliseconds;
    const event = { at, callback };
    this.#events.splice(this.#events.findLastIndex((other) => other.at <= at) + 1, 0, event);
    return event;
  }

  cancel(event) {
    const index = this.#events.indexOf(event);
    if (index >= 0) this.#events.splice(index, 1);
  }

  /** Let time pass. What promises cause is done after each callback. */
  async run(milliseconds) {
    const end = this.now + milliseconds;
    while (this.#events.length && this.#events[0].at <= end) {
      const { at, callback } = this.#events.shift();
      this.now = at;
      callback();
      await new Promise(setImmediate);
    }
    this.now = end;
  }

  /** Publish a message in each interval while time passes. */
  async publish(milliseconds, interval = 200) {
    for (const end = this.now + milliseconds; this.now < end; ) {
      this.published++;
      for (const stream of this.streams) stream.write({ type: "message", subject: "a", data: this.published });
      await this.run(interval);
    }
  }

  /** Open a tab. */
  open(source) {
    const tab = new Tab(this, source);
    this.tabs.push(tab);
    return tab;
  }

  /** The tabs that have an event stream. */
  get leaders() {
    return [...this.streams].map(({ tab }) => tab);
  }

  /** The numbers of the leaders that have sent something. */
  get numbers() {
    const terms = this.posts.filter(({ data }) => !data.from).map(({ data }) => Math.floor(data.term));
    return [...new Set(terms)];
  }

  get faults() {
    return this.tabs.flatMap(findFaults);
  }

  // The lock manager

  requestLock(request) {
    const { name, ifAvailable } = request;
    if (!this.#locks.has(name)) this.#locks.set(name, []);
    this.#locks.get(name).push(request);
    this.#grantLocks(name);
    if (request.isHeld || !ifAvailable) return;
    this.releaseLock(request);
    request.answer(null);
  }

  releaseLock(request) {
    const requests = this.#locks.get(request.name);
    if (!requests.includes(request)) return;
    requests.splice(requests.indexOf(request), 1);
    this.#grantLocks(request.name);
  }

  releaseLocks(tab) {
    for (const request of [...this.#locks.values()].flat()) if (request.tab === tab) this.releaseLock(request);
  }

  #grantLocks(name) {
    const requests = this.#locks.get(name);
    for (const request of requests) {
      const { mode } = request;
      const others = requests.filter((other) => other !== request && other.isHeld);
      if (others.some((other) => mode === "exclusive" || other.mode === "exclusive")) return;
      if (request.isHeld) continue;
      request.isHeld = true;
      request.answer({ name, mode });
    }
  }

  /** Return what `LockManager.query` does. */
  queryLocks() {
    const held = [];
    const pending = [];
    for (const { name, mode, isHeld, tab } of [...this.#locks.values()].flat()) {
      (isHeld ? held : pending).push({ name, mode, clientId: tab.id });
    }
    return { held, pending };
  }
}

/** A way from one part to another, on which nothing overtakes. */
class Way {
  #last = 0;

  constructor(world, kind, from, to) {
    this.world = world;
    this.ends = { kind, from, to };
  }

  /** Call a function at the other end: as a task, if that is a tab. */
  send(callback) {
    const { world, ends } = this;
    this.#last = Math.max(this.#last, world.now + world.delay(ends));
    world.after(this.#last - world.now, () => (ends.to ? ends.to.runTask(this, callback) : callback()));
  }
}

/** A tab: its event loop, its parts of the browser, and what client.js does around share.js. */
export class Tab {
  /** The numbers of the messages, and "gap". */
  log = [];
  /** The ids of the commands that have no answer. */
  pending = new Set();
  answers = [];
  state = "connecting";
  /** The patterns that its client follows, if it is the leader. */
  patterns = new Set();
  clients = 0;
  welcome = null;
  isSuspended = false;
  isClosed = false;
  #waiting = new Map();
  #isReading = false;
  #listeners = new Map();
  #commands = 0;
  #receivedAt = 0;
  #suspectsSilence = false;
  /** True if it has missed messages by the next welcome. A leader that stays reports its own gaps. */
  #hasNewLeader = true;

  constructor(world, source = world.source) {
    this.world = world;
    this.id = world.createId();
    this.toLocks = new Way(world, "locks", this);
    this.fromLocks = new Way(world, "locks", undefined, this);
    const clockError = (world.random() - 0.5) * 1e10;
    const scope = {
      crypto: { randomUUID: () => world.createId() },
      navigator: { locks: { request: this.#requestLock.bind(this), query: this.#queryLocks.bind(this) } },
      BroadcastChannel: createChannelClass(this),
      setInterval: this.#setInterval.bind(this),
      clearInterval: (timer) => timer.stop(),
      performance: { now: () => world.now },
      Date: { now: () => 1.7e12 + clockError + world.now },
      globalThis: { addEventListener: this.#addEventListener.bind(this) },
    };
    const body = `${source.replace("export class", "class")}; return SharedStream`;
    this.SharedStream = new Function(...Object.keys(scope), body)(...Object.values(scope));
    this.#join(false);
    this.#checkSilence();
  }

  get gaps() {
    return this.log.filter((entry) => entry === "gap").length;
  }

  /** True if the last message has arrived. */
  get isCurrent() {
    return this.log.at(-1) === this.world.published;
  }

  // The event loop

  /** Run a task; later, if the tab is suspended. */
  runTask(source, task) {
    if (this.isClosed) return;
    if (!this.isSuspended && !this.#waiting.has(source)) return task();
    if (!this.#waiting.has(source)) this.#waiting.set(source, []);
    this.#waiting.get(source).push(task);
  }

  /** Call a function after a time, as a task. */
  after(milliseconds, callback) {
    return this.world.after(milliseconds, () => this.runTask({}, callback));
  }

  /** Run no task until `wake`. */
  suspend() {
    this.isSuspended = true;
  }

  wake() {
    this.isSuspended = false;
    if (!this.#isReading) this.#readWaiting();
  }

  #readWaiting() {
    this.#isReading = !this.isSuspended && this.#waiting.size > 0;
    if (!this.#isReading) return;
    const sources = [...this.#waiting];
    const [source, tasks] = sources[Math.floor(this.world.random() * sources.length)];
    const task = tasks.shift();
    if (!tasks.length) this.#waiting.delete(source);
    this.world.after(1, () => this.#readWaiting());
    if (!this.isClosed) task();
  }

  close() {
    this.isClosed = true;
    for (const stream of this.world.streams) if (stream.tab === this) stream.close();
    for (const channel of this.world.channels) if (channel.tab === this) channel.close();
    this.toLocks.send(() => this.world.releaseLocks(this));
  }

  // The parts of the browser

  #setInterval(callback, milliseconds) {
    const timer = { isStopped: false, stop: () => ((timer.isStopped = true), this.world.cancel(timer.event)) };
    const start = () => {
      timer.event = this.after(milliseconds, () => {
        if (timer.isStopped) return;
        start();
        callback();
      });
    };
    start();
    return timer;
  }

  #addEventListener(type, listener, { signal }) {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners.add(listener));
    signal.addEventListener("abort", () => listeners.delete(listener));
  }

  /** Dispatch an event of the page. */
  dispatch(type) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) listener();
  }

  #requestLock(name, options, callback = options) {
    const { world } = this;
    const { mode = "exclusive", ifAvailable = false, signal } = callback === options ? {} : options;
    if (signal?.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const request = { name, mode, ifAvailable, tab: this, isHeld: false };
      const release = () => this.toLocks.send(() => world.releaseLock(request));
      request.answer = (lock) =>
        this.fromLocks.send(async () => {
          request.isAnswered = true;
          if (signal?.aborted) return release();
          try {
            resolve(await callback(lock));
          } catch (error) {
            reject(error);
          }
          release();
        });
      signal?.addEventListener("abort", () => {
        if (request.isAnswered) return;
        reject(signal.reason);
        this.toLocks.send(() => request.isHeld || world.releaseLock(request));
      });
      this.toLocks.send(() => this.isClosed || world.requestLock(request));
    });
  }

  #queryLocks() {
    return new Promise((resolve) => {
      this.toLocks.send(() => {
        const snapshot = this.world.queryLocks();
        this.fromLocks.send(() => resolve(snapshot));
      });
    });
  }

  // The client

  #join(isSuspect) {
    if (this.isClosed) return;
    let isOpen = true;
    const end = (isSilent, retry = 500 + this.world.random() * 1500) => {
      if (!isOpen) return;
      isOpen = false;
      this.state = "waiting";
      this.#endSession();
      this.world.cancel(welcomeTimer);
      this.stream.close();
      this.after(retry, () => this.#join(isSilent));
    };
    const welcomeTimer = this.after(WELCOME_TIMEOUT, () => end(true));
    this.end = end;
    this.state = "connecting";
    this.#suspectsSilence = false;
    this.stream = new this.SharedStream("stream", isSuspect, () => new Client(this), {
      receive: (frame) => this.#receive(frame),
      onstatus: ({ state }) => (this.state = state),
      stopWaiting: () => this.world.cancel(welcomeTimer),
      endSession: () => this.#endSession(),
      end: () => end(false),
      onlost: (error) => {
        if (error.name !== "AbortError") throw error;
        end(false, 0);
      },
    });
  }

  #endSession() {
    this.welcome = null;
    this.#hasNewLeader = true;
    for (const id of this.pending) this.#answer(id, "disconnected");
  }

  #receive(frame) {
    this.#receivedAt = this.world.now;
    this.#suspectsSilence = false;
    if (frame.type === "welcome") {
      this.welcome = frame;
      if (this.#hasNewLeader) this.log.push("gap");
      this.#hasNewLeader = false;
      this.send();
    }
    if (frame.type === "gap") this.log.push("gap");
    if (frame.type === "message") this.log.push(frame.data);
    if (frame.type === "reply") this.#answer(frame.id, frame.success);
  }

  /** Send a command, if there is a session. */
  send(command = { action: "ping" }) {
    if (!this.welcome) return;
    const id = `${this.id} ${++this.#commands}`;
    this.pending.add(id);
    this.stream.send({ command: { ...command, id } });
  }

  #answer(id, answer) {
    if (this.pending.delete(id)) this.answers.push(answer);
  }

  #checkSilence() {
    const silence = this.world.now - this.#receivedAt;
    const isSilent = !!this.welcome && this.state === "connected" && silence > 3 * HEARTBEAT;
    if (isSilent && this.#suspectsSilence) this.end(true);
    this.#suspectsSilence = isSilent;
    this.after(1000, () => this.#checkSilence());
  }
}

function createChannelClass(tab) {
  const { world } = tab;
  return class {
    tab = tab;
    #ways = new Map();

    constructor(name) {
      this.name = name;
      world.channels.add(this);
    }

    postMessage(message) {
      if (!world.channels.has(this)) throw new DOMException("The channel is closed", "InvalidStateError");
      const data = structuredClone(message);
      world.posts.push({ tab, data, at: world.now });
      for (const channel of world.channels) {
        if (channel === this || channel.name !== this.name) continue;
        if (!this.#ways.has(channel)) this.#ways.set(channel, new Way(world, "channel", tab, channel.tab));
        this.#ways.get(channel).send(() => world.channels.has(channel) && channel.onmessage?.({ data }));
      }
    }

    close() {
      world.channels.delete(this);
    }
  };
}

/** The client of a leader: an event stream that reconnects. */
class Client extends EventTarget {
  status = { state: "connecting" };
  welcome = null;
  #stream;
  #isClosed = false;
  #wasWelcome = false;

  constructor(tab) {
    super();
    this.tab = tab;
    this.world = tab.world;
    tab.clients++;
    this.#connect();
  }

  #connect() {
    if (this.#isClosed) return;
    const { world, tab } = this;
    const way = new Way(world, "stream", undefined, tab);
    const stream = (this.#stream = {
      tab,
      write: (frame) => way.send(() => stream === this.#stream && this.#receive(frame)),
      close: () => world.streams.delete(stream),
      cut: () => {
        stream.close();
        way.send(() => stream === this.#stream && this.#reconnect());
      },
    });
    const beat = () => {
      if (!world.streams.has(stream)) return;
      stream.write({ type: "heartbeat" });
      world.after(HEARTBEAT, beat);
    };
    world.after(world.delay({ kind: "request", from: tab }), () => {
      if (this.#isClosed || tab.isClosed) return;
      world.streams.add(stream);
      stream.write({ type: "welcome", session: world.createId() });
      beat();
    });
  }

  #reconnect() {
    this.welcome = null;
    this.#setStatus("waiting");
    this.tab.after(1000, () => this.#connect());
  }

  #receive(frame) {
    if (this.#isClosed) return;
    if (frame.type === "welcome") this.welcome = frame;
    this.#dispatch("frame", frame);
    if (frame.type !== "welcome") return;
    if (this.#wasWelcome) this.#dispatch("gap", { type: "gap" });
    this.#wasWelcome = true;
    this.#setStatus("connected");
  }

  #setStatus(state) {
    this.status = { state };
    this.#dispatch("status", this.status);
  }

  #dispatch(type, detail) {
    this.dispatchEvent(Object.assign(new Event(type), { detail }));
  }

  send(command) {
    const { world, tab } = this;
    return new Promise((resolve, reject) => {
      if (!this.welcome) return reject(Object.assign(new Error("Not connected"), { code: "disconnected" }));
      tab.after(world.delay({ kind: "request", from: tab }), () => resolve({ type: "reply", success: true }));
    });
  }

  subscribe(pattern) {
    const { patterns } = this.tab;
    patterns.add(pattern);
    return { ready: Promise.resolve({}), unsubscribe: () => patterns.delete(pattern) };
  }

  close() {
    this.#isClosed = true;
    this.#stream.close();
  }
}
