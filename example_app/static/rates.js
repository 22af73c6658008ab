// The message rate of each subject over the last minute.

import { byId, counted, element } from "./dom.js";
import { Sparkline } from "./sparkline.js";

const SECONDS = 60;
const MEAN_SECONDS = 10;
const MAX_SHOWN = 8;
const MAX_SUBJECTS = 500; // because a wildcard may match any number of them

export class Rates {
  #subjects = new Map();
  #list = byId("rates");
  #rest = byId("rates-rest");
  #uncounted = 0;
  #lastTime = performance.now();

  constructor() {
    setInterval(() => this.#tick(), 1000);
  }

  count(subject) {
    const rate = this.#subjects.get(subject);
    if (rate) rate.now += 1;
    else if (this.#subjects.size < MAX_SUBJECTS) this.#subjects.set(subject, { subject, now: 1, past: [] });
    else this.#uncounted += 1;
  }

  #tick() {
    // Browsers delay the timers of a hidden tab
    const now = performance.now();
    const passed = Math.min(SECONDS, Math.max(1, Math.round((now - this.#lastTime) / 1000)));
    this.#lastTime = now;
    for (const rate of this.#subjects.values()) {
      rate.past = [...rate.past, ...new Array(passed).fill(rate.now / passed)].slice(-SECONDS);
      rate.now = 0;
      rate.sum = rate.past.reduce((sum, count) => sum + count, 0);
      if (!rate.sum) this.#subjects.delete(rate.subject);
    }
    this.#show();
  }

  #show() {
    const busiest = [...this.#subjects.values()].sort((one, other) => other.sum - one.sum).slice(0, MAX_SHOWN);
    // By name, so that the lines keep their places
    busiest.sort((one, other) => (one.subject < other.subject ? -1 : 1));
    const items = busiest.map((rate) => draw(rate));
    const shown = this.#list.children;
    const unchanged = items.length === shown.length && items.every((item, at) => item === shown[at]);
    if (!unchanged) this.#list.replaceChildren(...items);
    const rest = this.#subjects.size - busiest.length;
    const hidden = rest ? `${counted(rest, "subject")} with lower rates not shown.` : "";
    const uncounted = this.#uncounted ? ` ${counted(this.#uncounted, "message")} on further subjects not counted.` : "";
    this.#rest.textContent = busiest.length ? hidden + uncounted : "The rate of each subject appears here.";
  }
}

function draw(rate) {
  if (!rate.item) {
    rate.line = new Sparkline();
    rate.number = element("span", { class: "rate" });
    rate.item = element("li", {}, element("code", {}, rate.subject), rate.line.element, rate.number);
  }
  rate.line.draw(rate.past, SECONDS);
  const recent = rate.past.slice(-MEAN_SECONDS);
  const mean = recent.reduce((sum, count) => sum + count, 0) / recent.length;
  rate.number.textContent = `${mean < 100 ? mean.toFixed(1) : Math.round(mean)}/s`;
  return rate.item;
}
