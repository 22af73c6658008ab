// How many messages each subject brings in a second, over the last minute.

import { byId, counted, element } from "./dom.js";
import { Sparkline } from "./sparkline.js";

const SECONDS = 60;
const MEAN = 10; // seconds
const SHOWN = 8;
const MOST = 500; // a wildcard may bring any number of subjects

export class Rates {
  #subjects = new Map();
  #list = byId("rates");
  #rest = byId("rates-rest");
  #others = 0;
  #last = performance.now();

  constructor() {
    setInterval(() => this.#tick(), 1000);
  }

  count(subject) {
    const rate = this.#subjects.get(subject);
    if (rate) rate.now += 1;
    else if (this.#subjects.size < MOST) this.#subjects.set(subject, { subject, now: 1, past: [] });
    else this.#others += 1;
  }

  #tick() {
    // Browsers let the timers of a hidden tab run late
    const now = performance.now();
    const passed = Math.min(SECONDS, Math.max(1, Math.round((now - this.#last) / 1000)));
    this.#last = now;
    for (const rate of this.#subjects.values()) {
      rate.past = [...rate.past, ...new Array(passed).fill(rate.now / passed)].slice(-SECONDS);
      rate.now = 0;
      rate.sum = rate.past.reduce((sum, count) => sum + count, 0);
      if (!rate.sum) this.#subjects.delete(rate.subject);
    }
    this.#show();
  }

  #show() {
    const busiest = [...this.#subjects.values()].sort((one, other) => other.sum - one.sum).slice(0, SHOWN);
    // By name, so that a line stays in its place while it is looked at
    busiest.sort((one, other) => (one.subject < other.subject ? -1 : 1));
    const items = busiest.map((rate) => draw(rate));
    const shown = this.#list.children;
    const same = items.length === shown.length && items.every((item, at) => item === shown[at]);
    if (!same) this.#list.replaceChildren(...items);
    const rest = this.#subjects.size - busiest.length;
    const more = rest ? `${counted(rest, "quieter subject")} not drawn.` : "";
    const beyond = this.#others ? ` ${counted(this.#others, "message")} of others not counted.` : "";
    this.#rest.textContent = busiest.length ? more + beyond : "The rate of each subject is drawn here.";
  }
}

function draw(rate) {
  if (!rate.item) {
    rate.line = new Sparkline();
    rate.number = element("span", { class: "rate" });
    rate.item = element("li", {}, element("code", {}, rate.subject), rate.line.element, rate.number);
  }
  rate.line.draw(rate.past, SECONDS);
  const recent = rate.past.slice(-MEAN);
  const mean = recent.reduce((sum, count) => sum + count, 0) / recent.length;
  rate.number.textContent = `${mean < 100 ? mean.toFixed(1) : Math.round(mean)}/s`;
  return rate.item;
}
