// Announcements for screen readers: events after a short delay, messages as a count, both at limited rates.

import { counted } from "./dom.js";

// Milliseconds
const EVENT_DELAY = 200;
const EVENT_INTERVAL = 3000;
const COUNT_INTERVAL = 15_000;

const MAX_EVENTS = 3; // per announcement

export class Announcer {
  #region;
  #events = new Map();
  #messages = 0;
  #lastTime = 0;
  #timer;
  #dueTime = Infinity;

  constructor(region) {
    this.#region = region;
  }

  /** Announce an event. It replaces an earlier event of the same topic that is still waiting. */
  announce(text, topic = text) {
    this.#events.set(topic, text);
    this.#schedule(Math.max(performance.now() + EVENT_DELAY, this.#lastTime + EVENT_INTERVAL));
  }

  /** Add one message to the count of the next announcement. */
  countMessage() {
    this.#messages += 1;
    if (this.#dueTime === Infinity) {
      this.#schedule(Math.max(performance.now() + EVENT_INTERVAL, this.#lastTime + COUNT_INTERVAL));
    }
  }

  #schedule(dueTime) {
    if (dueTime >= this.#dueTime) return;
    clearTimeout(this.#timer);
    this.#dueTime = dueTime;
    this.#timer = setTimeout(() => this.#flush(), dueTime - performance.now());
  }

  #flush() {
    const count = this.#messages ? [counted(this.#messages, "new message")] : [];
    this.#region.textContent = [...[...this.#events.values()].slice(-MAX_EVENTS), ...count].join(". ");
    this.#events.clear();
    this.#messages = 0;
    this.#lastTime = performance.now();
    this.#dueTime = Infinity;
  }
}
