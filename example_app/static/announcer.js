// What a screen reader says of its own accord: news soon, messages as a sum, and neither often.

import { counted } from "./dom.js";

const SOON = 200;
const NEWS = 3000;
const MESSAGES = 15_000;

export class Announcer {
  #region;
  #news = [];
  #messages = 0;
  #last = 0;
  #timer;
  #due = Infinity;

  constructor(region) {
    this.#region = region;
  }

  say(text) {
    this.#news = [...this.#news.slice(-2), text];
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
    this.#region.textContent = [...this.#news, ...sum].join(". ");
    this.#news = [];
    this.#messages = 0;
    this.#last = performance.now();
    this.#due = Infinity;
  }
}
