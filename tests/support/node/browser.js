// A simulated browser: pages with event loops, clocks, timers, channels and locks of their own.
//
// Time is virtual. Everything that one part of the browser sends to another takes a while, and keeps its order only
// within that way. After a page was suspended, it reads what has come on each way in order, but mixes the ways.
import { setMaxListeners } from "node:events";

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

/** The browser and the time. */
export class Browser {
  now = 0;
  /** Milliseconds for which the device was asleep: timers and the clock that can't be set have stopped meanwhile. */
  asleep = 0;
  tabs = [];
  channels = new Set();
  /** The messages that were sent by channels. */
  posts = [];
  /**
   * Return the milliseconds of a way; a test may replace it.
   *
   * The kind is `channel`, `locks`, `stream` or `request`. The ends are tabs; one that isn't is missing.
   */
  delay = (_ends) => this.random() * 50;
  #locks = new Map();
  #events = [];
  #ids = 0;

  constructor(random) {
    this.random = random;
  }

  createId() {
    return `id-${++this.#ids}`;
  }

  /** Call a function after a time. */
  after(milliseconds, callback, isTimer = false) {
    const event = { at: this.now + milliseconds, callback, isTimer };
    this.#insert(event);
    return event;
  }

  #insert(event) {
    this.#events.splice(this.#events.findLastIndex((other) => other.at <= event.at) + 1, 0, event);
  }

  cancel(event) {
    const index = this.#events.indexOf(event);
    if (index >= 0) this.#events.splice(index, 1);
  }

  /** Let the device sleep while time passes for the others. */
  async sleep(milliseconds) {
    const timers = this.#events.filter(({ isTimer }) => isTimer);
    for (const tab of this.tabs) tab.suspend();
    for (const event of timers) {
      this.cancel(event);
      event.at += milliseconds;
      this.#insert(event);
    }
    await this.run(milliseconds);
    this.asleep += milliseconds;
    for (const tab of this.tabs) tab.wake();
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
export class Way {
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

/** A page of the browser: its event loop, and the parts of the browser that its scripts use, in `scope`. */
export class Page {
  isSuspended = false;
  isClosed = false;
  #waiting = new Map();
  #isReading = false;
  #listeners = new Map();

  constructor(world) {
    this.world = world;
    this.id = world.createId();
    this.toLocks = new Way(world, "locks", this);
    this.fromLocks = new Way(world, "locks", undefined, this);
    this.clockError = (world.random() - 0.5) * 1e10;
    this.scope = {
      crypto: { randomUUID: () => world.createId() },
      navigator: { locks: { request: this.#requestLock.bind(this), query: this.#queryLocks.bind(this) } },
      BroadcastChannel: createChannelClass(this),
      setInterval: this.#setInterval.bind(this),
      clearInterval: (timer) => timer.stop(),
      performance: { now: () => world.now - world.asleep },
      Date: { now: () => 1.7e12 + this.clockError + world.now },
      globalThis: { addEventListener: this.#addEventListener.bind(this) },
    };
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
    return this.world.after(milliseconds, () => this.runTask({}, callback), true);
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
