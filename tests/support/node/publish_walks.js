// Random runs of pages that publish, while connections, the bridge and NATS fail, pages are suspended and the device
// sleeps. Prints the seed and the faults of each run that has any, and at last how often each outcome was.
import { readFileSync } from "node:fs";
import { createRandom } from "./browser.js";
import { World } from "./publishers.js";

const [folder, first, count, replaced = "", replacement = ""] = process.argv.slice(2);
const [source, share] = ["client.js", "share.js"].map((name) => readFileSync(`${folder}/${name}`, "utf8"));
if (!source.includes(replaced)) throw new Error(`Not in the module: ${replaced}`);
const client = source.replace(replaced, replacement);

const KINDS = [
  { transports: ["websocket"] },
  { transports: ["sse"] },
  {},
  { transports: ["sse"], share: "ada" },
  { transports: ["sse"], share: "ada" },
];
const REFUSALS = ["limit.publish", "nats.unavailable", "internal", "publish.invalid", "publish.forbidden"];
const POST_FAILURES = ["lost", "unanswered", "hung", "502", "403"];
const outcomes = {};

async function walk(seed) {
  const random = createRandom(seed);
  const world = new World(client, share, random);
  const { bridge } = world;
  const pick = (list) => list[Math.floor(random() * list.length)];
  const lag = random() < 0.5 ? 50 : 2000;
  let isCalm = false;
  world.delay = ({ kind }) => random() * (kind === "request" || kind === "stream" ? lag : 50);
  world.failPost = () => (!isCalm && random() < 0.2 ? pick(POST_FAILURES) : null);
  bridge.refuse = ({ action }) => {
    if (isCalm || !/publish|request/.test(action) || random() > 0.1) return null;
    const code = pick(REFUSALS);
    return { code, ...(code === "limit.publish" && { retry: 1 + Math.round(random() * 3000) }) };
  };
  const suspend = (page, milliseconds) => {
    page.suspend();
    world.after(milliseconds, () => page.wake());
  };
  const steps = {
    publish: (page) => void page.publish({ ack: true }),
    many: (page) => [1, 2, 3].forEach(() => page.publish({ ack: true })),
    once: (page) => void page.publish(),
    request: (page) => void page.request(pick(["svc.echo", "none", "slow"])),
    cut: () => pick([...bridge.links])?.cut(random() < 0.3),
    restart: () => bridge.isUp && bridge.restart(random() ** 2 * 60_000),
    nats: () => bridge.nats.isUp && bridge.nats.restart(random() ** 2 * 60_000, random() * 5000),
    suspend: (page) => suspend(page, random() ** 2 * 150_000),
    freeze: (page) => {
      page.dispatch("freeze");
      suspend(page, random() * 20_000);
    },
    // Tabs that share a stream have one user.
    login: (page) => (page.isShared ? page.nats.reconnect() : page.login()),
    sleep: () => random() < 0.2 && world.sleep(random() * 300_000),
    open: () => world.tabs.length < 7 && world.open(pick(KINDS)),
    close: (page) => findOpen().length > 2 && random() < 0.3 && page.close(),
    stop: (page) => findOpen().length > 2 && random() < 0.1 && page.nats.close(),
  };
  const findOpen = () => world.tabs.filter(({ isClosed }) => !isClosed);
  for (let index = 0; index < 2 + random() * 2; index++) world.open(pick(KINDS));
  await world.run(3000);
  for (let index = 0; index < 80; index++) {
    await steps[random() < 0.5 ? "publish" : pick(Object.keys(steps))](pick(findOpen()));
    await world.run(random() ** 2 * 5000);
  }
  isCalm = true;
  for (const tab of world.tabs) tab.wake();
  await world.run(200_000);
  for (const tab of world.tabs) tab.wake(); // of a suspension that was due later
  await world.run(100_000);
  for (const { action, ack, outcome } of world.outcomes) {
    const name = `${action}${ack ? " with ack" : ""}: ${outcome}`;
    outcomes[name] = (outcomes[name] ?? 0) + 1;
  }
  return world.faults;
}

for (let seed = Number(first); seed < Number(first) + Number(count); seed++) {
  const faults = await walk(seed);
  if (!faults.length) continue;
  console.log(JSON.stringify([seed, faults]));
  if (replaced) break; // one shows that the replaced part is needed
}
if (!replaced) console.log(JSON.stringify(outcomes));
