// The patterns that are followed, and the form that adds one.

import { byId, element } from "./dom.js";

export class Chips {
  #list = byId("followed");
  #form = byId("follow");
  #input = byId("subject");
  #error = byId("follow-error");
  #unfollow;

  constructor({ follow, unfollow }) {
    this.#unfollow = unfollow;
    this.#form.onsubmit = (event) => {
      event.preventDefault();
      this.complain("");
      follow(this.#input.value.trim());
    };
  }

  show(followed) {
    const chips = new Map([...this.#list.children].map((chip) => [chip.firstChild.textContent, chip]));
    for (const { pattern, held } of followed) {
      const chip = chips.get(pattern) ?? this.#list.appendChild(this.#chip(pattern));
      chip.classList.toggle("pending", !held);
      chips.delete(pattern);
    }
    for (const chip of chips.values()) this.#remove(chip);
  }

  complain(text) {
    this.#error.textContent = text;
    this.#input.setAttribute("aria-invalid", String(Boolean(text)));
  }

  #chip(pattern) {
    const button = element("button", { type: "button", "aria-label": `Unfollow ${pattern}`, title: "Unfollow" }, "×");
    button.onclick = () => this.#unfollow(pattern);
    return element("li", {}, element("code", {}, pattern), button);
  }

  // Whoever works by keyboard must not lose their place with the button
  #remove(chip) {
    const next = chip.nextElementSibling ?? chip.previousElementSibling;
    const focused = chip.contains(document.activeElement);
    chip.remove();
    if (focused) (next?.querySelector("button") ?? this.#input).focus();
  }
}
