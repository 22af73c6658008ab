// Pages that publish, simulated: each runs client.js and share.js on the connections of a fake bridge, behind which is
// NATS with one stream. Both can be cut off, killed, and refuse; the bridge follows the protocol.
import { Browser, Page, Way } from "./browser.js";

const ORIGIN = "http://bridge/nats/";
const HEARTBEAT = 15; // seconds
const ACK_TIMEOUT = 4000;
const REQUEST_TIMEOUT = 5000;
const WRITE_TIMEOUT = 40_000; // after which the bridge has closed a connection that takes nothing
const DUPLICATE_WINDOW = 120_000; // nats-server's default

/** NATS with one stream, which drops a message whose `msg_id` it knows. */
class Nats {
  isUp = true;
  /** False if no stream takes messages, as for a while after a start. */
  isReady = true;
  /** The `data` of stored messages, of those that were sent without `ack`, and of requests. */
  stored = [];
  sent = [];
  asked = [];
  /** Counts the connections of the bridge. */
  epoch = 0;
  #known = new Map();

  constructor(world) {
    this.world = world;
  }

  /** Store a message, and return the acknowledgement, or `null` if nothing takes it. */
  store({ data, msg_id }, identity) {
    const { now } = this.world;
    if (!this.isReady) return null;
    const key = `${msg_id} ${identity}`; // the bridge makes one of both
    const known = this.#known.get(key);
    if (known && now - known.at < DUPLICATE_WINDOW) return { sequence: known.sequence, duplicate: true };
    const sequence = this.stored.push(data);
    if (msg_id) this.#known.set(key, { at: now, sequence });
    return { sequence, duplicate: false };
  }

  /** Kill it, and start it again after a time. */
  async restart(milliseconds, unready = 0) {
    this.isUp = this.isReady = false;
    this.epoch++;
    this.world.after(milliseconds, () => (this.isUp = true));
    this.world.after(milliseconds + unready, () => (this.isReady = true));
  }
}

/** A worker of the bridge. */
class Bridge {
  isUp = true;
  features = ["publish", "request"];
  links = new Set();
  /** The commands that it has received. */
  received = [];
  /** Return a failed reply in place of the real one; a test may replace it. */
  refuse = (_command) => null;
  #epoch = 0;

  constructor(world) {
    this.world = world;
    this.nats = new Nats(world);
  }

  /** Kill it, and start it again after a time. */
  restart(milliseconds) {
    this.isUp = false;
    this.#epoch++;
    for (const link of this.links) link.cut();
    this.world.after(milliseconds, () => (this.isUp = true));
  }

  welcome() {
    const { features } = this;
    return { type: "welcome", success: true, session: this.world.createId(), features, heartbeat: HEARTBEAT, nats: "connected" };
  }

  /** Carry out a command of a user, and call `answer` with the reply, unless the bridge is killed meanwhile. */
  carryOut(command, identity, answer) {
    const epoch = this.#epoch;
    const { action, id } = command;
    const reply = (outcome) => {
      if (epoch === this.#epoch) answer({ type: "reply", id, action, success: !outcome.code, message: outcome.code ?? "", ...outcome });
    };
    this.received.push(command);
    const refusal = this.refuse(command);
    if (refusal) reply(refusal);
    else if (action === "publish") this.#publish(command, identity, reply);
    else if (action === "request") this.#request(command, reply);
    else reply({ subjects: command.subjects, active: true });
  }

  #publish(command, identity, reply) {
    const { world, nats } = this;
    if (!nats.isUp) return reply({ code: "nats.unavailable" });
    const { epoch } = nats;
    if (!command.ack) {
      nats.sent.push(command.data);
      return reply({});
    }
    let isAnswered = false;
    const finish = (outcome) => {
      if (!isAnswered) reply(outcome);
      isAnswered = true;
    };
    world.after(ACK_TIMEOUT, () => finish({ code: "publish.unknown" }));
    world.after(world.delay({ kind: "request" }), () => {
      if (epoch !== nats.epoch) return;
      const acknowledgement = nats.store(command, identity);
      const outcome = acknowledgement ? { stream: "ROOMS", ...acknowledgement } : { code: "publish.unstored", description: "no interest" };
      world.after(world.delay({ kind: "request" }), () => epoch === nats.epoch && finish(outcome));
    });
  }

  #request({ subject, data, timeout = REQUEST_TIMEOUT / 1000 }, reply) {
    const { world, nats } = this;
    if (!nats.isUp) return reply({ code: "nats.unavailable" });
    nats.asked.push(data);
    if (subject === "none") return reply({ code: "request.no_responders" });
    if (subject === "broken") return reply({ code: "request.failed", service_code: "500", message: "out of order" });
    if (subject === "slow") return world.after(1000 * timeout, () => reply({ code: "request.timeout" }));
    world.after(world.delay({ kind: "request" }), () => reply({ subject, data: { echo: data } }));
  }
}

/** A connection between a page and the bridge. */
class Link {
  isUp = true;
  #isLost = { bridge: false, page: false };

  constructor(page, onframe, onend) {
    const { world } = page;
    this.page = page;
    this.world = world;
    this.onend = onend;
    this.toBridge = new Way(world, "request", page);
    this.toPage = new Way(world, "stream", undefined, page);
    this.onframe = onframe;
    this.identity = page.identity; // by the cookie of the handshake
    this.toBridge.send(() => this.#open());
  }

  #open() {
    const { bridge } = this.world;
    if (!this.isUp) return;
    if (!bridge.isUp) return this.cut();
    bridge.links.add(this);
    this.write(bridge.welcome());
    const beat = () => {
      if (!this.isUp) return;
      this.write({ type: "heartbeat" });
      this.world.after(1000 * HEARTBEAT, beat);
    };
    this.world.after(1000 * HEARTBEAT, beat);
    this.onopen?.();
  }

  /** Send a frame to the page. */
  write(frame) {
    if (this.isUp) this.toPage.send(() => this.#isLost.page || this.onframe(frame));
  }

  /** Send a command to the bridge. */
  send(command) {
    if (!this.isUp) return;
    this.toBridge.send(() => this.#isLost.bridge || this.world.bridge.carryOut(command, this.identity, (reply) => this.write(reply)));
  }

  /** Cut it: what is on its way may arrive or not. The page may have to find out by itself. */
  cut(isSilent = false) {
    const { random } = this.world;
    if (!this.isUp) return;
    this.close();
    this.#isLost = { bridge: random() < 0.5, page: random() < 0.5 };
    if (!isSilent) this.toPage.send(() => this.onend());
  }

  close() {
    this.isUp = false;
    this.world.bridge.links.delete(this);
  }
}

/** The pages, the bridge, NATS, and the time. */
export class World extends Browser {
  bridge = new Bridge(this);
  /** The outcome of each publish and request, whose `data` is a number. */
  outcomes = [];
  /** Return how a POST fails: `lost`, `unanswered`, `hung`, `502` or `403`; a test may replace it. */
  failPost = () => null;

  constructor(client, share, random) {
    super(random);
    this.sources = { client, share };
  }

  /** Open a page. */
  open(options) {
    const page = new ClientPage(this, options);
    this.tabs.push(page);
    return page;
  }

  async run(milliseconds) {
    await new Promise(setImmediate); // what was started before
    await super.run(milliseconds);
  }

  /** Let the device sleep; the bridge closes the connections that take nothing. */
  async sleep(milliseconds) {
    const links = [...this.bridge.links];
    if (milliseconds > WRITE_TIMEOUT) this.after(WRITE_TIMEOUT, () => links.forEach((link) => link.cut()));
    await super.sleep(milliseconds);
  }

  /** The faults: messages that NATS has twice, or otherwise than the outcome states. */
  get faults() {
    const { stored, sent, asked } = this.bridge.nats;
    return this.outcomes.flatMap(({ number, action, ack, outcome, page }) => {
      const count = [...stored, ...sent, ...asked].filter((data) => data === number).length;
      const isRefused = /^(command|publish.(forbidden|invalid|unstored)|limit|nats|disconnected)/.test(outcome);
      const isRight =
        count <= 1 &&
        (outcome !== "done" || count === 1) &&
        (outcome !== "pending" || page.isClosed) &&
        // Without `ack` a lost connection leaves it open.
        (!isRefused || !count || (!ack && outcome === "disconnected"));
      return isRight ? [] : [`${action} ${number}${ack ? " with ack" : ""}: ${outcome}, ${count} in NATS`];
    });
  }
}

/** A page with a client. */
class ClientPage extends Page {
  /** The user who is logged in. */
  identity = 0;

  constructor(world, options) {
    super(world);
    const { scope } = this;
    const page = this;
    const globals = {
      ...scope.globalThis,
      navigator: scope.navigator,
      BroadcastChannel: scope.BroadcastChannel,
      WebSocket: createSocketClass(page),
      EventSource: createSourceClass(page),
      fetch: this.#fetch.bind(this),
    };
    Object.assign(scope, globals, {
      globalThis: globals,
      crypto: { ...scope.crypto, getRandomValues: (array) => array.map(() => world.random() * 2 ** 32) },
      Math: Object.assign(Object.create(Math), { random: world.random }),
      setTimeout: this.#setTimeout.bind(this),
      clearTimeout: (timer) => world.cancel(timer),
      AbortSignal: { timeout: (limit) => ({ limit }) },
      importShare: async () => ({ SharedStream: this.#run(world.sources.share.replace("export class", "class"), "SharedStream") }),
    });
    const source = world.sources.client.replace("export const", "const").replace('import("./share.js")', "importShare()");
    this.isShared = "share" in options;
    this.nats = this.#run(source, "connect")({ url: ORIGIN, ...options });
  }

  #run(source, name) {
    const { scope } = this;
    return new Function(...Object.keys(scope), `"use strict"; ${source}; return ${name}`)(...Object.values(scope));
  }

  #setTimeout(callback, milliseconds) {
    return this.after(Math.max(1, Math.trunc(milliseconds)), callback); // as browsers do
  }

  /** Publish the next number, and note what becomes of it. */
  publish(options) {
    return this.#note("publish", options?.ack, (number) => this.nats.publish("rooms.7.say", number, options));
  }

  request(subject = "svc.echo", options) {
    return this.#note("request", false, (number) => this.nats.request(subject, number, options));
  }

  async #note(action, ack, start) {
    const { world } = this;
    const number = world.outcomes.length + 1;
    const noted = { number, action, ack, outcome: "pending", page: this, at: world.now };
    world.outcomes.push(noted);
    try {
      noted.reply = await start(number);
      noted.outcome = "done";
    } catch (error) {
      noted.error = error;
      noted.outcome = error.code ?? `${error}`;
    }
    noted.milliseconds = world.now - noted.at;
    return noted;
  }

  /** Log in as another user. */
  login() {
    this.identity++;
    this.nats.reconnect();
  }

  close() {
    for (const link of this.world.bridge.links) if (link.page === this) link.close();
    super.close();
  }

  #fetch(url, { method = "GET", body, signal }) {
    const { world, identity } = this;
    const { bridge } = world;
    const path = new URL(url).pathname.split("/").at(-1);
    const failure = method === "POST" ? world.failPost() : null;
    return new Promise((resolve, reject) => {
      const toBridge = new Way(world, "request", this);
      const toPage = new Way(world, "request", undefined, this);
      const fail = (error) => toPage.send(() => reject(error));
      const answer = (reply, status = 200) => {
        if (failure === "unanswered") fail(new TypeError("fetch failed"));
        else if (failure === "502") toPage.send(() => resolve(createResponse(null, 502)));
        else if (failure !== "hung") toPage.send(() => resolve(createResponse(reply, status)));
      };
      this.after(signal.limit, () => reject(new DOMException("", "TimeoutError")));
      toBridge.send(() => {
        if (failure === "403") return answer(null, 403);
        if (failure === "lost" || !bridge.isUp) return fail(new TypeError("fetch failed"));
        if (method !== "POST") return answer(null, 503);
        bridge.carryOut({ ...JSON.parse(body), action: path }, identity, answer);
      });
    });
  }
}

/** Return what the client looks at in an answer. */
function createResponse(reply, status) {
  const headers = new Map(reply ? [["sanic-nats-bridge", "1"]] : []);
  const json = async () => {
    if (!reply) throw new SyntaxError("not JSON");
    return structuredClone(reply);
  };
  return { status, headers, url: ORIGIN, type: "basic", clone: () => ({ json }) };
}

function createSocketClass(page) {
  return class {
    constructor() {
      const data = (frame) => ({ data: JSON.stringify(frame) });
      this.link = new Link(page, (frame) => this.onmessage(data(frame)), () => this.onclose({ code: 1006, reason: "" }));
    }

    send(text) {
      this.link.send(JSON.parse(text));
    }

    close() {
      this.link.close();
    }
  };
}

function createSourceClass(page) {
  return class {
    readyState = 0;
    #listeners = new Map();

    constructor(url) {
      const subjects = new URL(url).searchParams.getAll("subjects");
      const onframe = (frame) => this.#listeners.get(frame.type)?.({ data: JSON.stringify(frame) });
      this.link = new Link(page, onframe, () => this.onerror());
      const reply = { type: "reply", action: "subscribe", success: true, message: "", subjects, active: true };
      this.link.onopen = () => subjects.length && this.link.write(reply);
    }

    addEventListener(type, listener) {
      this.#listeners.set(type, listener);
    }

    close() {
      this.readyState = 2;
      this.link.close();
    }
  };
}
