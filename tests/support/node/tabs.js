// Tabs that share an event stream, simulated. Each runs share.js in a page of its own.
import { Browser, Page, Way } from "./browser.js";

const HEARTBEAT = 2000;
const WELCOME_TIMEOUT = 15_000; // as in client.js

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
export class World extends Browser {
  /** The event streams that are open. */
  streams = new Set();
  published = 0;

  constructor(source, random) {
    super(random);
    this.source = source;
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
}

/** A tab: what client.js does around share.js. */
export class Tab extends Page {
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
  #commands = 0;
  #receivedAt = 0;
  #suspectsSilence = false;
  /** True if it has missed messages by the next welcome. A leader that stays reports its own gaps. */
  #hasNewLeader = true;

  constructor(world, source = world.source) {
    super(world);
    const { scope } = this;
    const body = `${source.replace("export class", "class")}; return SharedStream`;
    this.SharedStream = new Function(...Object.keys(scope), body)(...Object.values(scope));
    this.#join(false);
    this.#checkSilence();
  }

  close() {
    for (const stream of this.world.streams) if (stream.tab === this) stream.close();
    super.close();
  }

  get gaps() {
    return this.log.filter((entry) => entry === "gap").length;
  }

  /** True if the last message has arrived. */
  get isCurrent() {
    return this.log.at(-1) === this.world.published;
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
