// The composer: publishes a message or sends a request, and lists what became of each.

import { byId, clock, element } from "./dom.js";
import { payload } from "./pretty.js";

const MAX_ITEMS = 50;
const MAX_TEXT = 500; // characters
/** The subjects at the start: a stream of the app's own server has the first one, and its service serves the other. */
const PUBLISH = { action: "Publish", subject: "test.page", allowed: ["test.>", "orders.>"] };
const REQUEST = { action: "Request", subject: "example.echo", allowed: ["example.*"] };
/** Outcomes other than a refusal, by their codes. */
const OUTCOMES = {
  "publish.unknown": "Not confirmed",
  disconnected: "Not confirmed",
  blocked: "Not confirmed",
  "request.timeout": "No answer",
  "request.no_responders": "No answer",
  "request.failed": "Failed",
};

export class Composer {
  #how = byId("how");
  #subject = byId("publish-subject");
  #button = byId("publish").querySelector("button");
  #list = byId("sent");
  #publish;
  #request;
  #announce;

  constructor({ publish, request, announce }) {
    this.#publish = publish;
    this.#request = request;
    this.#announce = announce;
    this.#how.onchange = () => this.#select();
    byId("publish").onsubmit = (event) => {
      event.preventDefault();
      this.#send(this.#how.value, this.#subject.value.trim(), byId("publish-data").value);
    };
  }

  /** Show what the bridge has: both, one of them, or nothing. */
  show(features) {
    for (const option of this.#how.options) {
      const isAvailable = features.includes(option.value === "request" ? "request" : "publish");
      option.hidden = option.disabled = !isAvailable;
    }
    const available = [...this.#how.options].filter((option) => !option.disabled);
    byId("publish-view").hidden = !available.length;
    if (this.#how.selectedOptions[0]?.disabled && available.length) this.#how.value = available[0].value;
    this.#select();
  }

  #select() {
    const { action, subject, allowed } = this.#how.value === "request" ? REQUEST : PUBLISH;
    this.#button.textContent = action;
    const codes = allowed.map((pattern) => element("code", {}, pattern));
    byId("allowed").replaceChildren(...codes.flatMap((code, index) => (index ? [" or ", code] : [code])));
    // A subject that was typed is kept.
    if ([PUBLISH, REQUEST].some((each) => each.subject === this.#subject.value)) this.#subject.value = subject;
  }

  async #send(how, subject, text) {
    const { data, ...options } = parse(text);
    const item = this.#add(subject, text);
    try {
      const reply =
        how === "request"
          ? await this.#request(subject, data, options)
          : await this.#publish(subject, data, { ...options, ack: how === "ack" });
      this.#finish(item, "good", subject, ...describe(how, reply));
    } catch ({ code, message, description, serviceCode }) {
      const why = [message, description].filter(Boolean).join(": ");
      this.#finish(item, "failed", subject, OUTCOMES[code] ?? "Refused", `${why} (${[code, serviceCode].filter(Boolean).join(" ")})`);
    }
  }

  #add(subject, text) {
    const head = element("span", { class: "head" }, element("b", {}, "Sending…"), element("time", {}, clock(new Date())));
    const sent = element("span", { class: "text" }, `${subject} ${text.slice(0, MAX_TEXT)}`);
    const item = element("li", {}, head, sent);
    this.#list.prepend(item);
    while (this.#list.childElementCount > MAX_ITEMS) this.#list.lastElementChild.remove();
    return item;
  }

  #finish(item, kind, subject, title, text) {
    item.classList.add(kind);
    item.querySelector("b").textContent = title;
    if (text) item.append(element("span", { class: "text outcome" }, text.slice(0, MAX_TEXT)));
    this.#announce(`${title}: ${subject}${text ? `, ${text.slice(0, MAX_TEXT)}` : ""}`);
  }
}

function parse(text) {
  if (!text.trim()) return {};
  try {
    return { data: JSON.parse(text) };
  } catch {
    return { data: text, encoding: "text" };
  }
}

function describe(how, reply) {
  if (how === "request") return ["Answered", payload(reply).text];
  if (how === "publish") return ["Sent", ""];
  const { stream, sequence, duplicate } = reply;
  return ["Stored", `number ${sequence} in ${stream}${duplicate ? ", by an earlier attempt" : ""}`];
}
