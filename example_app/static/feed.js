// The newest messages, and the gaps between them where they happened.

import { payload } from "./pretty.js";

export class Feed {
  kept = 200;
  messages = 0;
  #entries = [];
  #frozen = null;
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
    if (this.#frozen) this.#frozen = [];
    this.messages = 0;
  }

  /** What comes from now on is kept, but not among those to show until the thaw. */
  freeze() {
    this.#frozen = this.#entries.slice();
  }

  thaw() {
    this.#frozen = null;
  }

  get size() {
    return this.#visible.length;
  }

  /** The sequence number of the oldest one to show. */
  get first() {
    return this.#visible[0]?.sequence ?? Infinity;
  }

  get last() {
    return this.#visible.at(-1)?.sequence ?? 0;
  }

  /** Those after a sequence number that fit the filter, oldest first. Notes fit every filter. */
  after(sequence, filter) {
    const fresh = this.#visible.slice(Math.max(0, sequence - this.first + 1));
    const wanted = filter.toLowerCase();
    const fits = (entry) => entry.title || `${entry.subject}\n${textOf(entry)}`.toLowerCase().includes(wanted);
    return wanted ? fresh.filter(fits) : fresh;
  }

  trim() {
    for (const entries of [this.#entries, this.#frozen ?? []]) {
      entries.splice(0, Math.max(0, entries.length - this.kept));
    }
  }

  get #visible() {
    return this.#frozen ?? this.#entries;
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
