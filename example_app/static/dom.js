// Elements whose content is text and other elements, never HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...content) {
  return filled(document.createElement(name), attributes, content);
}

export function svgElement(name, attributes = {}, ...content) {
  return filled(document.createElementNS(SVG, name), attributes, content);
}

function filled(made, attributes, content) {
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...content);
  return made;
}

const PAUSE = 100; // milliseconds; nobody reads faster, and rows that are gone by then are never made

/** The function, called in the next frame, once however often it is asked for, and with a pause after each time. */
export function inFrames(draw) {
  let asked = false;
  let last = -PAUSE;
  const frame = () => {
    asked = false;
    last = performance.now();
    draw();
  };
  return () => {
    if (asked) return;
    asked = true;
    setTimeout(() => requestAnimationFrame(frame), last + PAUSE - performance.now());
  };
}

/** Hours to milliseconds, as the user's clock shows them. */
export function clock(date) {
  return `${date.toTimeString().slice(0, 8)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

export const number = new Intl.NumberFormat("en").format;

export const counted = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
