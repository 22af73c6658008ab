// The page: what comes from the connection goes to its parts.

import { Announcer } from "./announcer.js";
import { Chips } from "./chips.js";
import { Connection } from "./connection.js";
import { Console } from "./console.js";
import { byId, counted } from "./dom.js";
import { Feed } from "./feed.js";
import { Rates } from "./rates.js";
import { Status } from "./status.js";
import { Table } from "./table.js";

const REASONS = {
  nats_reconnect: "the bridge had lost NATS",
  slow_consumer: "they came faster than this browser took them",
  internal: "a fault of the bridge",
  reconnect: "this browser was not connected",
  switch: "the transport was switched",
};

const feed = new Feed();
const table = new Table(feed);
const rates = new Rates();
const announcer = new Announcer(byId("announcement"));

const connection = new Connection({
  message(message) {
    feed.message(message);
    rates.count(message.subject);
    table.draw();
    if (!table.paused) announcer.count();
  },
  gap({ subjects, lost, reason }) {
    const missed = lost === null ? "Messages may have been missed" : `${counted(lost, "message")} missed`;
    note("Gap", `${missed} on ${subjects.join(", ")}: ${REASONS[reason] ?? reason}.`);
  },
  ended({ pattern, held }, { code, message }) {
    chips.complain(`${message} (${code})`);
    if (held) note("Ended", `${pattern}: ${message} (${code}).`);
  },
  followed: (followed) => chips.show(followed),
  frame: (frame) => frames.frame(frame),
  status(status) {
    const news = state.show(status);
    if (news) announcer.say(news, "state");
  },
});

function note(title, text) {
  feed.note(title, text);
  table.draw();
  announcer.say(`${title}: ${text}`);
}

const chips = new Chips({
  follow: (pattern) => connection.follow(pattern),
  unfollow: (pattern) => connection.unfollow(pattern),
});
const frames = new Console({
  send: (command) => connection.send(command),
  announce: (text) => announcer.say(text),
});
const state = new Status((choice) => connection.use(choice));
state.begin();
