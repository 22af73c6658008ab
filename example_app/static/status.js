// The state of the connection, the transport in use, and the reason for it.

import { byId } from "./dom.js";

const NAMES = { websocket: "WebSocket", sse: "Server-Sent Events" };

export class Status {
  #use;
  #forced;
  #text;

  constructor(use) {
    this.#use = use;
    byId("transport").onchange = ({ target }) => this.#select(target.value);
  }

  /** Connect by the selected transport. A browser may have kept the selection during a reload. */
  start() {
    this.#select(document.querySelector("[name=transport]:checked").value);
  }

  /** Show the client's status. Return the state as text if it has changed. */
  show(status) {
    const { state, transport, nats } = status;
    const connected = state === "connected";
    const text = describe(status);
    byId("state").textContent = text;
    const opening = state === "connecting" || state === "subscribing";
    byId("state").className = connected && nats === "connected" ? "good" : opening ? "" : "bad";
    byId("used").textContent = connected ? NAMES[transport] : "none";
    byId("why").textContent = connected ? this.#reason(status) : (status.reason ?? "");
    byId("nats").textContent = connected ? nats : "unknown";
    const changed = text !== this.#text && text;
    this.#text = text;
    return changed;
  }

  #select(transport) {
    this.#forced = transport !== "auto";
    this.#use(transport);
  }

  #reason({ why }) {
    if (this.#forced) return "selected on this page";
    if (why === "remembered") return "it worked in this tab before";
    return why ? `the WebSocket failed (${why.replace(/^websocket: /, "")})` : "it works";
  }
}

function describe({ state, nats, reason, retry }) {
  if (state === "connected") return nats === "connected" ? "Connected" : "Connected; NATS is disconnected";
  if (state === "connecting") return "Connecting…";
  if (state === "subscribing") return "Subscribing…";
  if (state === "closed") return `Closed: ${reason}`;
  return `Disconnected; reconnecting in ${Math.ceil(retry / 1000)} s`;
}
