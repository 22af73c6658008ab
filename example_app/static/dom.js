// Helpers for elements. Content is always text or other elements, never HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...content) {
  return fill(document.createElement(name), attributes, content);
}

export function svgElement(name, attributes = {}, ...content) {
  return fill(document.createElementNS(SVG, name), attributes, content);
}

function fill(created, attributes, content) {
  for (const [attribute, value] of Object.entries(attributes)) created.setAttribute(attribute, value);
  created.append(...content);
  return created;
}

const DRAW_INTERVAL = 100; // milliseconds; faster changes cannot be read, and would cost the creation of rows

/** Return a function that calls `draw` in an animation frame, at most once per interval. */
export function throttled(draw) {
  let scheduled = false;
  let lastTime = -DRAW_INTERVAL;
  const frame = () => {
    scheduled = false;
    lastTime = performance.now();
    draw();
  };
  return () => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => requestAnimationFrame(frame), lastTime + DRAW_INTERVAL - performance.now());
  };
}

/** Format the local time of day, with milliseconds. */
export function clock(date) {
  return `${date.toTimeString().slice(0, 8)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

export const number = new Intl.NumberFormat("en").format;

/** Format a count with its noun in the singular or plural. */
export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
