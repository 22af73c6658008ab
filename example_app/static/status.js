// How the connection is, and which transport has it for what reason.

import { byId } from "./dom.js";

const NAMES = { websocket: "WebSocket", sse: "Server-Sent Events" };

export class Status {
  #use;
  #forced;
  #text;

  constructor(use) {
    this.#use = use;
    byId("transport").onchange = ({ target }) => this.#choose(target.value);
  }

  /** Connect as is chosen already, for a browser may have kept the choice over a reload. */
  begin() {
    this.#choose(document.querySelector("[name=transport]:checked").value);
  }

  /** Show the client's status; returns the state in words where they have changed. */
  show(status) {
    const { state, transport, nats } = status;
    const connected = state === "connected";
    const text = inWords(status);
    byId("state").textContent = text;
    byId("state").className = connected && nats === "connected" ? "good" : state === "connecting" ? "" : "bad";
    byId("used").textContent = connected ? NAMES[transport] : "none";
    byId("why").textContent = connected ? this.#why(status) : (status.reason ?? "");
    byId("nats").textContent = !connected ? "not known" : nats === "connected" ? "connected" : "away";
    const news = text !== this.#text && text;
    this.#text = text;
    return news;
  }

  #choose(choice) {
    this.#forced = choice !== "auto";
    this.#use(choice);
  }

  #why({ why }) {
    if (this.#forced) return "it was chosen here";
    if (why === "remembered") return "it has worked in this tab before";
    return why ? `the WebSocket did not get through (${why.replace(/^websocket: /, "")})` : "it gets through";
  }
}

function inWords({ state, nats, reason, retry }) {
  if (state === "connected") return nats === "connected" ? "Connected" : "Connected; NATS is away";
  if (state === "connecting") return "Connecting…";
  if (state === "closed") return `Closed: ${reason}`;
  return `Not connected; tries again in ${Math.ceil(retry / 1000)} s`;
}
