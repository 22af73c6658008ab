// The list of subscriptions, and the form that adds one.

import { byId, element } from "./dom.js";

export class Chips {
  #list = byId("subscriptions");
  #form = byId("subscribe");
  #input = byId("subject");
  #error = byId("subscribe-error");
  #unsubscribe;

  constructor({ subscribe, unsubscribe }) {
    this.#unsubscribe = unsubscribe;
    this.#form.onsubmit = (event) => {
      event.preventDefault();
      this.showError("");
      subscribe(this.#input.value.trim(), JSON.parse(byId("from").value));
    };
  }

  show(subscriptions) {
    const chips = new Map([...this.#list.children].map((chip) => [chip.firstChild.textContent, chip]));
    for (const { pattern, ready } of subscriptions) {
      const chip = chips.get(pattern) ?? this.#list.appendChild(this.#chip(pattern));
      chip.classList.toggle("pending", !ready);
      chips.delete(pattern);
    }
    for (const chip of chips.values()) this.#remove(chip);
  }

  /** Show or hide the selection of the first messages. */
  showHistory(visible) {
    byId("history").hidden = !visible;
    if (!visible) byId("from").selectedIndex = 0;
  }

  showError(text) {
    this.#error.textContent = text;
    this.#input.setAttribute("aria-invalid", String(Boolean(text)));
  }

  #chip(pattern) {
    const label = { "aria-label": `Unsubscribe from ${pattern}`, title: "Unsubscribe" };
    const button = element("button", { type: "button", ...label }, "×");
    button.onclick = () => this.#unsubscribe(pattern);
    return element("li", {}, element("code", {}, pattern), button);
  }

  // Move the keyboard focus to a neighbour, because it would be lost with the button
  #remove(chip) {
    const neighbour = chip.nextElementSibling ?? chip.previousElementSibling;
    const focused = chip.contains(document.activeElement);
    chip.remove();
    if (focused) (neighbour?.querySelector("button") ?? this.#input).focus();
  }
}
