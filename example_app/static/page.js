// The page: shows frames as they come, sends commands. Data reaches the page as text, never as HTML.

const SHOWN_FRAMES = 200;
const byId = (id) => document.getElementById(id);
const log = byId("log");
const followed = new Set();

let connection = null;
let messages = 0;

/** Frames down and commands up over one WebSocket; comes back by itself. */
class WebSocketConnection {
  constructor() {
    this.open();
  }

  open() {
    const address = new URL("/stream", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.socket.onmessage = (event) => receive(JSON.parse(event.data));
    this.socket.onclose = () => this.lost();
  }

  lost() {
    if (this.ended) return;
    showState("disconnected; coming back", false);
    this.timer = setTimeout(() => this.open(), this.retry ?? 500 + Math.random() * 2500);
    this.retry = undefined;
  }

  send(command) {
    if (this.socket.readyState !== WebSocket.OPEN) throw new Error("not connected");
    this.socket.send(JSON.stringify(command));
  }

  close() {
    this.ended = true;
    this.socket.onmessage = null;
    clearTimeout(this.timer);
    this.socket.close();
  }
}

/** Frames down over an event stream, commands up by POST; EventSource comes back by itself. */
class EventStreamConnection {
  constructor() {
    this.source = new EventSource("/events");
    for (const type of ["message", "welcome", "reply", "gap", "unsubscribed", "status", "close"]) {
      this.source.addEventListener(type, (event) => this.received(JSON.parse(event.data)));
    }
    this.source.onerror = () => {
      const stopped = this.source.readyState === EventSource.CLOSED;
      showState(stopped ? "disconnected" : "disconnected; coming back", false);
    };
  }

  received(frame) {
    if (frame.type === "welcome") this.session = frame.session;
    receive(frame);
  }

  async send(command) {
    if (!this.session) throw new Error("not connected");
    const path = command.action === "unsubscribe" ? "/unsubscribe" : "/subscribe";
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...command, session: this.session }),
    });
    receive(await response.json());
  }

  close() {
    this.source.close();
  }
}

function receive(frame) {
  switch (frame.type) {
    case "message":
      messages += 1;
      byId("count").value = `${messages} message${messages === 1 ? "" : "s"}`;
      show(frame.pattern ? `${frame.subject} (${frame.pattern})` : frame.subject, frame.data);
      break;
    case "welcome":
      showState(nats(frame), frame.nats === "connected");
      if (followed.size) send({ action: "subscribe", subjects: [...followed] });
      break;
    case "status":
      showState(nats(frame), frame.nats === "connected");
      break;
    case "reply":
      show(frame.success ? "reply" : `refused: ${frame.code}`, frame.message, !frame.success);
      if (frame.success) note(frame);
      break;
    case "gap":
      show("gap", `${frame.lost ?? "some"} messages missed on ${frame.subjects.join(", ")}`, true);
      break;
    case "unsubscribed":
      frame.subjects.forEach((subject) => followed.delete(subject));
      showFollowed();
      show(`unsubscribed: ${frame.code}`, frame.message, true);
      break;
    case "close":
      connection.retry = frame.retry;
      show(`closed: ${frame.code}`, frame.reason, true);
      break;
  }
}

function note(reply) {
  for (const subject of reply.subjects ?? []) {
    if (reply.action === "subscribe") followed.add(subject);
    if (reply.action === "unsubscribe") followed.delete(subject);
  }
  showFollowed();
}

async function send(command) {
  try {
    await connection.send(command);
  } catch (error) {
    show("not sent", error.message, true);
  }
}

function connect(transport) {
  connection?.close();
  showState("connecting…", false);
  connection = transport === "events" ? new EventStreamConnection() : new WebSocketConnection();
}

const nats = (frame) => (frame.nats === "connected" ? "connected" : "connected; NATS is away");

function showState(text, live) {
  byId("state").textContent = text;
  byId("state").classList.toggle("live", live);
}

function show(title, data, failed = false) {
  const item = document.createElement("li");
  const heading = document.createElement("b");
  heading.textContent = title;
  item.append(heading, typeof data === "string" ? data : JSON.stringify(data));
  item.classList.toggle("failed", failed);
  log.prepend(item);
  if (log.childElementCount > SHOWN_FRAMES) log.lastElementChild.remove();
}

function showFollowed() {
  byId("followed").replaceChildren(
    ...[...followed].map((subject) => {
      const item = document.createElement("li");
      const name = document.createElement("code");
      const button = document.createElement("button");
      name.textContent = subject;
      button.textContent = "Unfollow";
      button.onclick = () => send({ action: "unsubscribe", subjects: [subject] });
      item.append(name, button);
      return item;
    }),
  );
}

byId("transport").onchange = (event) => connect(event.target.value);
byId("follow").onsubmit = (event) => {
  event.preventDefault();
  send({ action: "subscribe", subjects: [byId("subject").value.trim()] });
};
byId("send").onsubmit = (event) => {
  event.preventDefault();
  try {
    send(JSON.parse(byId("command").value));
  } catch (error) {
    show("not sent", error.message, true);
  }
};
byId("clear").onclick = () => {
  log.replaceChildren();
  messages = 0;
  byId("count").value = "0 messages";
};

connect("websocket");
