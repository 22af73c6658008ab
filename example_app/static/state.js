// The state of a key-value bucket as a table that changes in place. The row of a deleted key is removed.

import { byId, element } from "./dom.js";
import { payload } from "./pretty.js";

const PREFIX = "$KV.prefs.";

export class State {
  pattern = `${PREFIX}>`;
  #rows = byId("state-rows");
  #shown = new Map();

  /** Show or hide the table. */
  show(visible) {
    byId("state-view").hidden = !visible;
  }

  message(message) {
    const key = message.subject.slice(PREFIX.length);
    if (message.operation) this.#remove(key);
    else this.#row(key).lastElementChild.textContent = payload(message).text;
    this.#update();
  }

  /** Remove all rows, before the state is received again. */
  clear() {
    this.#shown.clear();
    this.#rows.replaceChildren();
    this.#update();
  }

  #row(key) {
    if (!this.#shown.has(key)) {
      const head = element("th", { role: "rowheader", scope: "row" }, key);
      const row = element("tr", { role: "row" }, head, element("td", { role: "cell" }));
      // By key, so that the rows keep their places
      const next = [...this.#shown].sort().find(([other]) => other > key);
      this.#rows.insertBefore(row, next?.[1] ?? null);
      this.#shown.set(key, row);
    }
    return this.#shown.get(key);
  }

  #remove(key) {
    this.#shown.get(key)?.remove();
    this.#shown.delete(key);
  }

  #update() {
    byId("state-empty").hidden = this.#shown.size > 0;
  }
}
