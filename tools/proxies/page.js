// What a page does: it runs the browser client, a bare EventSource and a bare WebSocket at the same time, and notes what
// each gets. An EventSource that has ended for good is opened again, as careful pages do.
({ prefix, links, roles }) => {
  const RETRY_MS = 5000;
  /** Rows of milliseconds, link, role, kind and value, until `take` is called. */
  const rows = [];
  const note = (link, role, kind, value = null) => rows.push([Date.now(), link, role, kind, value]);
  const receive = (link, role, frame) =>
    frame.type === "message" ? note(link, role, "message", frame.data) : note(link, role, "frame", frame.type);

  const follow = {
    client(link, subject, { connect }) {
      const client = connect();
      const status = ({ state, transport, why, reason, retry }) =>
        note(link, "client", "status", { state, transport, why, reason, retry });
      status(client.status);
      client.addEventListener("status", ({ detail }) => status(detail));
      client.addEventListener("gap", ({ detail }) => note(link, "client", "gap", detail.reason));
      client.addEventListener("close", ({ detail }) => note(link, "client", "close", detail.reason));
      client.addEventListener("frame", ({ detail }) => detail.type !== "message" && note(link, "client", "frame", detail.type));
      const { ready } = client.subscribe(subject, (data) => note(link, "client", "message", data));
      ready.then(
        () => note(link, "client", "ready"),
        (error) => note(link, "client", "refused", `${error.code}: ${error.message}`),
      );
    },
    eventsource(link, subject) {
      const source = new EventSource(`${prefix}/events?subjects=${subject}`);
      source.onopen = () => note(link, "eventsource", "open");
      source.onerror = () => {
        note(link, "eventsource", "error");
        if (source.readyState === 2) setTimeout(() => follow.eventsource(link, subject), RETRY_MS);
      };
      source.onmessage = ({ data }) => receive(link, "eventsource", JSON.parse(data));
      for (const type of ["welcome", "reply", "heartbeat", "gap"]) {
        source.addEventListener(type, () => note(link, "eventsource", "frame", type));
      }
    },
    websocket(link, subject) {
      const socket = new WebSocket(`${location.origin.replace("http", "ws")}${prefix}/stream`);
      socket.onopen = () => socket.send(JSON.stringify({ action: "subscribe", subjects: [subject] }));
      socket.onclose = ({ code, reason }) => note(link, "websocket", "close", `${code} ${reason}`);
      socket.onmessage = ({ data }) => receive(link, "websocket", JSON.parse(data));
    },
  };

  window.measured = { take: () => rows.splice(0) };
  const load = import(`${prefix}/client.js`);
  for (const [link, subject] of Object.entries(links)) {
    note(link, "page", "start");
    for (const role of roles) {
      if (role === "client") {
        load.then(
          (module) => follow.client(link, `${subject}.client`, module),
          (error) => note(link, "client", "failed", `${error}`),
        );
      } else {
        follow[role](link, `${subject}.${role}`);
      }
    }
  }
};
