// The newest messages, and the gaps between them where they happened.

import { payload } from "./pretty.js";

export class Feed {
  kept = 200;
  messages = 0;
  #entries = [];
  #sequence = 0;

  message(message) {
    this.messages += 1;
    const { subject, pattern, encoding } = message;
    this.#add({ subject, pattern, encoding, message });
  }

  /** Something about the stream itself, such as a gap. */
  note(title, text) {
    this.#add({ title, text });
  }

  clear() {
    this.#entries = [];
    this.messages = 0;
  }

  get size() {
    return this.#entries.length;
  }

  /** The sequence number of the oldest one kept. */
  get first() {
    return this.#entries[0]?.sequence ?? this.#sequence + 1;
  }

  get last() {
    return this.#sequence;
  }

  /** Those after a sequence number that fit the filter, oldest first. Notes fit every filter. */
  after(sequence, filter) {
    const start = Math.max(0, sequence - this.first + 1);
    const wanted = filter.toLowerCase();
    const fits = (entry) => entry.title || `${entry.subject}\n${textOf(entry)}`.toLowerCase().includes(wanted);
    const fresh = this.#entries.slice(start);
    return wanted ? fresh.filter(fits) : fresh;
  }

  trim() {
    if (this.#entries.length > this.kept) this.#entries.splice(0, this.#entries.length - this.kept);
  }

  #add(entry) {
    this.#entries.push({ ...entry, sequence: ++this.#sequence, time: new Date() });
    // In one go: to move the whole array for each message would cost more than the message
    if (this.#entries.length > 2 * this.kept) this.trim();
  }
}

/** Made only for what is looked at, for most of a fast stream never is. */
export function textOf(entry) {
  if (entry.message) {
    Object.assign(entry, payload(entry.message));
    delete entry.message;
  }
  return entry.text;
}
