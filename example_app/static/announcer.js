// What a screen reader says of its own accord: news soon, messages as a sum, and neither often.

import { counted } from "./dom.js";

const SOON = 200;
const NEWS = 3000;
const MESSAGES = 15_000;
const MOST = 3; // pieces of news at once

export class Announcer {
  #region;
  #news = new Map();
  #messages = 0;
  #last = 0;
  #timer;
  #due = Infinity;

  constructor(region) {
    this.#region = region;
  }

  /** News about a topic replaces what was not said of it yet. */
  say(text, topic = text) {
    this.#news.set(topic, text);
    this.#plan(Math.max(performance.now() + SOON, this.#last + NEWS));
  }

  count() {
    this.#messages += 1;
    if (this.#due === Infinity) this.#plan(Math.max(performance.now() + NEWS, this.#last + MESSAGES));
  }

  #plan(due) {
    if (due >= this.#due) return;
    clearTimeout(this.#timer);
    this.#due = due;
    this.#timer = setTimeout(() => this.#speak(), due - performance.now());
  }

  #speak() {
    const sum = this.#messages ? [counted(this.#messages, "new message")] : [];
    this.#region.textContent = [...[...this.#news.values()].slice(-MOST), ...sum].join(". ");
    this.#news.clear();
    this.#messages = 0;
    this.#last = performance.now();
    this.#due = Infinity;
  }
}
