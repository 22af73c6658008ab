// The feed as a table, newest entry first. Draws the entries since the last frame together, at most the kept ones.

import { byId, clock, counted, element, throttled, number } from "./dom.js";
import { textOf } from "./feed.js";

const MAX_LINES = 12;
const LINE_LENGTH = 80;

export class Table {
  #feed;
  #rows = byId("rows");
  #count = byId("count");
  #empty = byId("empty");
  #pause = byId("pause");
  #drawn = 0;
  #countAtPause = 0;
  #paused = false;
  #filter = "";

  constructor(feed) {
    this.#feed = feed;
    this.draw = throttled(() => this.#draw());
    byId("filter").oninput = (event) => this.#redraw(() => (this.#filter = event.target.value.trim()));
    byId("kept").onchange = (event) => this.#redraw(() => (feed.limit = Number(event.target.value)));
    byId("clear").onclick = () => this.#redraw(() => feed.clear());
    this.#pause.onclick = () => this.#toggle();
  }

  get paused() {
    return this.#paused;
  }

  #toggle() {
    this.#paused = !this.#paused;
    this.#countAtPause = this.#feed.messages;
    if (this.#paused) this.#feed.freeze();
    else this.#feed.unfreeze();
    this.#pause.textContent = this.#paused ? "Resume" : "Pause";
    this.#pause.classList.toggle("on", this.#paused);
    this.draw();
  }

  #redraw(change) {
    change();
    this.#countAtPause = Math.min(this.#countAtPause, this.#feed.messages);
    this.#rows.replaceChildren();
    this.#drawn = 0;
    this.#draw();
  }

  #draw() {
    const feed = this.#feed;
    feed.trim();
    this.#rows.prepend(...feed.after(this.#drawn, this.#filter).reverse().map(row));
    this.#drawn = feed.last;
    while (this.#rows.lastElementChild?.sequence < feed.first) this.#rows.lastElementChild.remove();
    const paused = this.#paused ? ` · paused, ${number(feed.messages - this.#countAtPause)} new` : "";
    this.#count.textContent = `${counted(feed.messages, "message")}${paused}`;
    this.#empty.textContent = feed.size
      ? "No message matches the filter."
      : "Subscribe to a pattern to see its messages here.";
    this.#empty.hidden = this.#rows.childElementCount > 0;
  }
}

function row(entry) {
  const time = cell("time", element("time", { datetime: entry.time.toISOString() }, clock(entry.time)));
  const cells = entry.title ? [note(entry)] : [subject(entry), data(entry)];
  const created = element("tr", { role: "row" }, time, ...cells);
  created.classList.toggle("note", Boolean(entry.title));
  created.classList.toggle("good", Boolean(entry.isGood));
  created.sequence = entry.sequence;
  return created;
}

const cell = (name, ...content) => element("td", { role: "cell", class: name }, ...content);

function note({ title, text }) {
  const created = cell("note-text", element("strong", {}, title), ` ${text}`);
  created.colSpan = 2;
  return created;
}

function subject({ subject, pattern }) {
  const name = element("span", { class: "name" }, subject);
  return pattern ? cell("subject", name, element("span", { class: "by" }, `by ${pattern}`)) : cell("subject", name);
}

function data(entry) {
  const text = textOf(entry);
  const lines = text.split("\n");
  const shown = lines.slice(0, MAX_LINES).join("\n").slice(0, LINE_LENGTH * MAX_LINES);
  const part = element("span", { class: "text" }, shown);
  const created = cell("data", part);
  if (entry.encoding === "base64") created.prepend(element("span", { class: "tag" }, "base64"));
  if (shown.length < text.length) created.append(expander(part, text, shown));
  const { truncated } = entry;
  if (truncated) created.append(element("span", { class: "truncated" }, `${counted(truncated, "more character")}`));
  return created;
}

function expander(part, text, shown) {
  const button = element("button", { type: "button", class: "plain", "aria-expanded": "false" }, "Show all");
  button.onclick = () => {
    const open = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Show less" : "Show all";
    part.textContent = open ? text : shown;
  };
  return button;
}
