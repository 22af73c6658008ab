// The console: sends commands as typed, and lists the received frames.

import { byId, clock, element, throttled } from "./dom.js";

const MAX_ITEMS = 100;
const MAX_TEXT = 2000; // characters
const FREQUENT = new Set(["message", "heartbeat"]);
const FAILURES = new Set(["gap", "unsubscribed", "close"]);

export class Console {
  #list = byId("frames");
  #showAll = byId("all-frames");
  #pending = [];
  #draw = throttled(() => this.#show());
  #announce;

  constructor({ send, announce }) {
    this.#announce = announce;
    byId("send").onsubmit = (event) => {
      event.preventDefault();
      this.#send(byId("command").value, send);
    };
    byId("clear-frames").onclick = () => this.#list.replaceChildren();
  }

  frame(frame) {
    if (!this.#showAll.checked && (FREQUENT.has(frame.type) || isClientReply(frame))) return;
    const failed = frame.success === false || FAILURES.has(frame.type);
    this.#add("in", frame.type, JSON.stringify(withoutSecret(frame)), failed);
  }

  async #send(text, send) {
    try {
      const command = JSON.parse(text);
      if (!/^\s*\{/.test(text)) throw new Error("A command must be a JSON object");
      this.#add("out", "sent", JSON.stringify(command));
      const { message, code } = await send(command);
      this.#announce(message ?? code);
      if (code === "disconnected") throw new Error("The connection was lost before the reply");
    } catch (error) {
      this.#add("", "failed", error.message, true);
      this.#announce(error.message);
    }
  }

  #add(direction, title, text, failed = false) {
    this.#pending.push({ direction, title, text, failed, time: new Date() });
    if (this.#pending.length > MAX_ITEMS) this.#pending.shift();
    this.#draw();
  }

  #show() {
    this.#list.prepend(...this.#pending.reverse().map(item));
    this.#pending = [];
    while (this.#list.childElementCount > MAX_ITEMS) this.#list.lastElementChild.remove();
  }
}

// The ids of the client's own commands begin with "#"
const isClientReply = ({ type, id }) => type === "reply" && typeof id === "string" && id.startsWith("#");

// The session id authorizes commands, so other people who see the page must not read it
const withoutSecret = (frame) => (frame.session ? { ...frame, session: `${frame.session.slice(0, 4)}…` } : frame);

function item({ direction, title, text, failed, time }) {
  const head = element("span", { class: "head" }, element("b", {}, title), element("time", {}, clock(time)));
  const body = element("span", { class: "text" }, text.slice(0, MAX_TEXT));
  const created = element("li", { class: direction }, head, body);
  created.classList.toggle("failed", failed);
  return created;
}
