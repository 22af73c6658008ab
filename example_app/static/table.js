// The feed as a table, newest on top: what has come is drawn together, and no more of it than is kept.

import { byId, clock, counted, element, inFrames, number } from "./dom.js";
import { textOf } from "./feed.js";

const LINES = 12;

export class Table {
  #feed;
  #rows = byId("rows");
  #count = byId("count");
  #empty = byId("empty");
  #pause = byId("pause");
  #drawn = 0;
  #seen = 0; // messages until the pause
  #paused = false;
  #filter = "";

  constructor(feed) {
    this.#feed = feed;
    this.draw = inFrames(() => this.#draw());
    byId("filter").oninput = (event) => this.#again(() => (this.#filter = event.target.value.trim()));
    byId("kept").onchange = (event) => this.#again(() => (feed.kept = Number(event.target.value)));
    byId("clear").onclick = () => this.#again(() => feed.clear());
    this.#pause.onclick = () => this.#toggle();
  }

  get paused() {
    return this.#paused;
  }

  #toggle() {
    this.#paused = !this.#paused;
    this.#seen = this.#feed.messages;
    if (this.#paused) this.#feed.freeze();
    else this.#feed.thaw();
    this.#pause.textContent = this.#paused ? "Resume" : "Pause";
    this.#pause.classList.toggle("on", this.#paused);
    this.draw();
  }

  #again(change) {
    change();
    this.#seen = Math.min(this.#seen, this.#feed.messages);
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
    const news = this.#paused ? ` · paused, ${number(feed.messages - this.#seen)} new` : "";
    this.#count.textContent = `${counted(feed.messages, "message")}${news}`;
    this.#empty.textContent = feed.size
      ? "Nothing that is kept fits the filter."
      : "Follow a pattern, and its messages appear here.";
    this.#empty.hidden = this.#rows.childElementCount > 0;
  }
}

function row(entry) {
  const time = cell("time", element("time", { datetime: entry.time.toISOString() }, clock(entry.time)));
  const cells = entry.title ? [note(entry)] : [subject(entry), data(entry)];
  const made = element("tr", { role: "row" }, time, ...cells);
  made.classList.toggle("note", Boolean(entry.title));
  made.sequence = entry.sequence;
  return made;
}

const cell = (name, ...content) => element("td", { role: "cell", class: name }, ...content);

function note({ title, text }) {
  const made = cell("said", element("strong", {}, title), ` ${text}`);
  made.colSpan = 2;
  return made;
}

function subject({ subject, pattern }) {
  const name = element("span", { class: "name" }, subject);
  return pattern ? cell("subject", name, element("span", { class: "by" }, `by ${pattern}`)) : cell("subject", name);
}

function data(entry) {
  const text = textOf(entry);
  const lines = text.split("\n");
  const shown = lines.slice(0, LINES).join("\n").slice(0, 80 * LINES);
  const part = element("span", { class: "text" }, shown);
  const made = cell("data", part);
  if (entry.encoding === "base64") made.prepend(element("span", { class: "tag" }, "base64"));
  if (shown.length < text.length) made.append(more(part, text, shown));
  const { leftOut } = entry;
  if (leftOut) made.append(element("span", { class: "left-out" }, `${counted(leftOut, "character")} more came`));
  return made;
}

function more(part, text, shown) {
  const button = element("button", { type: "button", class: "plain", "aria-expanded": "false" }, "Show all");
  button.onclick = () => {
    const open = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Show less" : "Show all";
    part.textContent = open ? text : shown;
  };
  return button;
}
