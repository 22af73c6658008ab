// The page: connects the events of the connection to the parts of the page.

import { Announcer } from "./announcer.js";
import { Chips } from "./chips.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Console } from "./console.js";
import { byId, counted } from "./dom.js";
import { Feed } from "./feed.js";
import { Rates } from "./rates.js";
import { State } from "./state.js";
import { Status } from "./status.js";
import { Table } from "./table.js";

const REASONS = {
  nats_reconnect: "the bridge was disconnected from NATS",
  slow_consumer: "this browser was too slow",
  internal: "the bridge had an internal error",
  reconnect: "this browser was disconnected",
  switch: "the transport was switched",
  unknown: "the last position is unknown",
  reset: "the stream was created again",
  expired: "the stream has removed them",
  backlog: "there were too many of them",
};

const feed = new Feed();
const table = new Table(feed);
const rates = new Rates();
const bucket = new State();
const announcer = new Announcer(byId("announcement"));

const connection = new Connection({
  message(message) {
    feed.message(message);
    rates.count(message.subject);
    table.draw();
    if (!table.paused) announcer.countMessage();
  },
  gap({ subjects, lost, reason }) {
    if (subjects.includes(bucket.pattern)) bucket.clear();
    const extent = lost === null ? "Messages may have been lost" : `${counted(lost, "message")} lost`;
    note("Gap", `${extent} on ${subjects.join(", ")}: ${REASONS[reason] ?? reason}.`);
  },
  caughtUp(patterns, replayed, resumed) {
    if (!resumed && !replayed) return;
    const text = `${counted(replayed, "message")} caught up on ${patterns.join(", ")}.`;
    note(resumed ? "Resumed" : "History", text, true);
  },
  features(features) {
    chips.showHistory(features.includes("history"));
    bucket.show(features.includes("history"));
    composer.show(features);
  },
  ended({ pattern, ready }, { code, message }) {
    chips.showError(`${message} (${code})`);
    if (ready) note("Subscription ended", `${pattern}: ${message} (${code}).`);
  },
  subscriptions: (subscriptions) => chips.show(subscriptions),
  frame: (frame) => frames.frame(frame),
  status(status) {
    const changed = state.show(status);
    if (changed) announcer.announce(changed, "state");
  },
});

function note(title, text, isGood = false) {
  feed.note(title, text, isGood);
  table.draw();
  announcer.announce(`${title}: ${text}`);
}

const chips = new Chips({
  subscribe: (pattern, from) => connection.subscribe(pattern, { from }),
  unsubscribe: (pattern) => connection.unsubscribe(pattern),
});
const frames = new Console({
  send: (command) => connection.send(command),
  announce: (text) => announcer.announce(text),
});
const composer = new Composer({
  publish: (...message) => connection.publish(...message),
  request: (...message) => connection.request(...message),
  announce: (text) => announcer.announce(text),
});
connection.follow(bucket);
const state = new Status((transport) => connection.use(transport));
state.start();
