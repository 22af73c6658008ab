// Runs the body of a function with simulated tabs, and prints its result.
import { readFileSync } from "node:fs";
import { createRandom } from "./browser.js";
import { World } from "./tabs.js";

const [path, body] = process.argv.slice(2);
const source = readFileSync(path, "utf8");
const AsyncFunction = (async () => {}).constructor;
const result = await new AsyncFunction("world", "source", body)(new World(source, createRandom(1)), source);
console.log(JSON.stringify(result));
