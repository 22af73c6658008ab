// Payloads as people read them: what fits into a line stays in one.

const NARROW = matchMedia("(max-width: 52rem)");
const MOST = 20_000; // characters
const DEEPEST = 40;

/** The text of a message's data, and how many characters of it were left out. */
export function payload({ data, encoding }) {
  const text = encoding ? data : pretty(data);
  return { text: text.slice(0, MOST), leftOut: Math.max(0, text.length - MOST) };
}

/** JSON with line breaks only where a line would be too long. */
export function pretty(value) {
  let flat;
  try {
    flat = JSON.stringify(value);
  } catch (error) {
    return error.message; // nested more deeply than the engine follows
  }
  return flat.length > MOST ? flat : broken(value, "", 0);
}

function broken(value, indent, depth) {
  if (value === null || typeof value !== "object" || depth > DEEPEST) return JSON.stringify(value);
  const inner = `${indent}  `;
  const isArray = Array.isArray(value);
  const parts = isArray
    ? value.map((item) => broken(item, inner, depth + 1))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${broken(item, inner, depth + 1)}`);
  const [open, close] = isArray ? "[]" : "{}";
  const line = isArray ? `[${parts.join(", ")}]` : `{ ${parts.join(", ")} }`;
  if (!parts.length) return open + close;
  if (indent.length + line.length <= (NARROW.matches ? 38 : 64) && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => inner + part).join(",\n")}\n${indent}${close}`;
}
