// Payloads formatted for people: on one line if they fit.

const NARROW = matchMedia("(max-width: 52rem)");
const MAX_LENGTH = 20_000; // characters
const MAX_DEPTH = 40;

/** Return the text of a message's data, and the number of characters that were cut off. */
export function payload({ data, encoding }) {
  const text = encoding ? data : pretty(data);
  return { text: text.slice(0, MAX_LENGTH), truncated: Math.max(0, text.length - MAX_LENGTH) };
}

/** Format JSON, with line breaks only if a line would be too long. */
export function pretty(value) {
  let flat;
  try {
    flat = JSON.stringify(value);
  } catch (error) {
    return error.message; // nested more deeply than the engine supports
  }
  return flat.length > MAX_LENGTH ? flat : format(value, "", 0);
}

function format(value, indent, depth) {
  if (value === null || typeof value !== "object" || depth > MAX_DEPTH) return JSON.stringify(value);
  const inner = `${indent}  `;
  const isArray = Array.isArray(value);
  const parts = isArray
    ? value.map((item) => format(item, inner, depth + 1))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${format(item, inner, depth + 1)}`);
  const [open, close] = isArray ? "[]" : "{}";
  const line = isArray ? `[${parts.join(", ")}]` : `{ ${parts.join(", ")} }`;
  if (!parts.length) return open + close;
  if (indent.length + line.length <= (NARROW.matches ? 38 : 64) && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => inner + part).join(",\n")}\n${indent}${close}`;
}
