// Runs the body of a function with simulated pages that publish, and prints its result.
import { readFileSync } from "node:fs";
import { createRandom } from "./browser.js";
import { World } from "./publishers.js";

const [folder, body] = process.argv.slice(2);
const [client, share] = ["client.js", "share.js"].map((name) => readFileSync(`${folder}/${name}`, "utf8"));
const create = (seed = 1) => new World(client, share, createRandom(seed));
const AsyncFunction = (async () => {}).constructor;
console.log(JSON.stringify(await new AsyncFunction("world", "create", body)(create(), create)));
