// A small line chart.

import { svgElement } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 24;

export class Sparkline {
  #line = svgElement("polyline", { class: "line" });
  #area = svgElement("polygon", { class: "area" });
  // Hidden from screen readers, which read the number beside it
  element = svgElement(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    this.#area,
    this.#line,
  );

  /** Draw the values, oldest first, on an axis with `places` points. The newest value is at the right end. */
  draw(values, places) {
    const top = Math.max(1, ...values) * 1.2;
    const x = (index) => (WIDTH * (places - values.length + index)) / (places - 1);
    const y = (value) => HEIGHT - 1 - (HEIGHT - 2) * (value / top);
    const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
    this.#line.setAttribute("points", points.join(" "));
    this.#area.setAttribute("points", [`${x(0).toFixed(1)},${HEIGHT}`, ...points, `${WIDTH},${HEIGHT}`].join(" "));
  }
}
