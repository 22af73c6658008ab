// Runs pages that publish with client.js in Node, with the classes of `ws` and `eventsource`. Each line of its input is an
// action and its arguments. Each line of its output is the number of a page, a time, and a publish or what became of it.
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const { connect } = await import(process.argv[2]);
const pages = new Map();

/** Return a time in seconds by the monotonic clock, which all processes share. */
const now = () => Number(process.hrtime.bigint()) / 1e9;

class Page {
  #say;
  #options;
  #isStopped = false;
  #last = 0;
  /** The number of times that each message was sent. */
  #attempts = new Map();

  constructor(number, { url, transports, ...options }) {
    this.#say = (what) => console.log(JSON.stringify([number, now(), what]));
    this.#options = options;
    const count = (text) => this.#count(text);
    class CountingSocket extends WebSocket {
      send(text) {
        count(text);
        super.send(text);
      }
    }
    const countingFetch = (to, init) => {
      if (init?.body) count(init.body);
      return fetch(to, init);
    };
    this.nats = connect({ WebSocket: CountingSocket, EventSource, fetch: countingFetch, url, transports });
    this.#run();
  }

  stop() {
    this.#isStopped = true;
  }

  #count(text) {
    const { action, data } = JSON.parse(text);
    if (action === "publish") this.#attempts.set(data.number, (this.#attempts.get(data.number) ?? 0) + 1);
  }

  async #run() {
    const { waits, burst, interval } = this.#options;
    while (!this.#isStopped) {
      const sent = Array.from({ length: burst }, () => this.#publish());
      if (waits) await Promise.all(sent);
      await sleep(interval);
    }
  }

  async #publish() {
    const { name, subjects, pads } = this.#options;
    const number = ++this.#last;
    const subject = subjects[number % subjects.length];
    const data = { sender: name, number, pad: "x".repeat(pads[number % pads.length]) };
    this.#say({ type: "sent", number, subject, data });
    const outcome = await this.nats.publish(subject, data, { ack: true }).then(
      (reply) => ({ reply }),
      (error) => ({ code: error.code ?? `${error}` }),
    );
    this.#say({ type: "settled", number, attempts: this.#attempts.get(number) ?? 0, ...outcome });
  }
}

const actions = {
  open(number, options) {
    pages.set(number, new Page(number, options));
  },

  /** Let a page publish nothing more. */
  stop(number) {
    pages.get(number).stop();
  },

  close(number) {
    pages.get(number).stop();
    pages.get(number).nats.close();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [action, ...rest] = JSON.parse(line);
  actions[action](...rest);
}
process.exit();
