// The newest messages, with the gaps between them.

import { payload } from "./pretty.js";

export class Feed {
  /** The number of entries that are kept. */
  limit = 200;
  /** The number of messages since the last `clear`. */
  messages = 0;
  #entries = [];
  #frozen = null;
  #sequence = 0;

  message(message) {
    this.messages += 1;
    const { subject, pattern, encoding } = message;
    this.#add({ subject, pattern, encoding, message });
  }

  /** Add a note about the stream itself, such as a gap; `isGood` if it is about no loss. */
  note(title, text, isGood = false) {
    this.#add({ title, text, isGood });
  }

  clear() {
    this.#entries = [];
    if (this.#frozen) this.#frozen = [];
    this.messages = 0;
  }

  /** Hide later entries until `unfreeze`. They are still added. */
  freeze() {
    this.#frozen = this.#entries.slice();
  }

  unfreeze() {
    this.#frozen = null;
  }

  /** The number of visible entries. */
  get size() {
    return this.#visible.length;
  }

  /** The sequence number of the oldest visible entry. */
  get first() {
    return this.#visible[0]?.sequence ?? Infinity;
  }

  /** The sequence number of the newest visible entry. */
  get last() {
    return this.#visible.at(-1)?.sequence ?? 0;
  }

  /** Return the entries after a sequence number that match the filter, oldest first. Every filter matches notes. */
  after(sequence, filter) {
    const entries = this.#visible.slice(Math.max(0, sequence - this.first + 1));
    const wanted = filter.toLowerCase();
    const matches = (entry) => entry.title || `${entry.subject}\n${textOf(entry)}`.toLowerCase().includes(wanted);
    return wanted ? entries.filter(matches) : entries;
  }

  /** Remove the oldest entries above the limit. */
  trim() {
    for (const entries of [this.#entries, this.#frozen ?? []]) {
      entries.splice(0, Math.max(0, entries.length - this.limit));
    }
  }

  get #visible() {
    return this.#frozen ?? this.#entries;
  }

  #add(entry) {
    this.#entries.push({ ...entry, sequence: ++this.#sequence, time: new Date() });
    // In groups, because moving the whole array for each message would cost more than the message
    if (this.#entries.length > 2 * this.limit) this.trim();
  }
}

/** Return the text of an entry. Formatted on first use, because most messages of a fast stream are never shown. */
export function textOf(entry) {
  if (entry.message) {
    Object.assign(entry, payload(entry.message));
    delete entry.message;
  }
  return entry.text;
}
