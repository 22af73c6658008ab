// Commands as they are typed, and the frames that come back.

import { byId, clock, element, inFrames } from "./dom.js";

const MOST = 100;
const QUIET = new Set(["message", "heartbeat"]);
const BAD = new Set(["gap", "unsubscribed", "close"]);
const LONGEST = 2000; // characters

export class Console {
  #list = byId("frames");
  #every = byId("every");
  #fresh = [];
  #draw = inFrames(() => this.#show());
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
    if (!this.#every.checked && (QUIET.has(frame.type) || isOfTheClient(frame))) return;
    const failed = frame.success === false || BAD.has(frame.type);
    this.#add("in", frame.type, JSON.stringify(withoutSecret(frame)), failed);
  }

  async #send(text, send) {
    try {
      const command = JSON.parse(text);
      if (!/^\s*\{/.test(text)) throw new Error("A command is a JSON object");
      this.#add("out", "sent", JSON.stringify(command));
      const { message, code } = await send(command);
      this.#announce(message ?? code);
      if (code === "disconnected") throw new Error("The connection was lost before the reply");
    } catch (error) {
      this.#add("", "not sent", error.message, true);
      this.#announce(error.message);
    }
  }

  #add(direction, title, text, failed = false) {
    this.#fresh.push({ direction, title, text, failed, time: new Date() });
    if (this.#fresh.length > MOST) this.#fresh.shift();
    this.#draw();
  }

  #show() {
    this.#list.prepend(...this.#fresh.reverse().map(item));
    this.#fresh = [];
    while (this.#list.childElementCount > MOST) this.#list.lastElementChild.remove();
  }
}

// The client numbers its own commands so; the user's get other ids
const isOfTheClient = ({ type, id }) => type === "reply" && typeof id === "string" && id.startsWith("#");

// Whoever knows the session may command it, and a page may be looked at by others
const withoutSecret = (frame) => (frame.session ? { ...frame, session: `${frame.session.slice(0, 4)}…` } : frame);

function item({ direction, title, text, failed, time }) {
  const head = element("span", { class: "head" }, element("b", {}, title), element("time", {}, clock(time)));
  const made = element("li", { class: direction }, head, element("span", { class: "text" }, text.slice(0, LONGEST)));
  made.classList.toggle("failed", failed);
  return made;
}
