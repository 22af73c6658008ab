// Random runs of tabs that share a stream: they are suspended, wake up, open and close, and streams break. Prints
// the seed and the faults of each run that has any.
import { readFileSync } from "node:fs";
import { createRandom } from "./browser.js";
import { World } from "./tabs.js";

const [path, first, count, replaced = "", replacement = ""] = process.argv.slice(2);
const source = readFileSync(path, "utf8");
if (!source.includes(replaced)) throw new Error(`Not in the module: ${replaced}`);

async function walk(seed) {
  const random = createRandom(seed);
  const world = new World(source.replace(replaced, replacement), random);
  const lag = random() < 0.5 ? 50 : 1000;
  world.delay = ({ kind }) => random() * (kind === "stream" ? lag : 50);
  const pick = (list) => list[Math.floor(random() * list.length)];
  const suspend = (tabs, milliseconds) => {
    for (const tab of tabs) tab.suspend();
    world.after(milliseconds, () => tabs.forEach((tab) => tab.wake()));
  };
  const steps = {
    leader: () => suspend(world.leaders, random() ** 2 * 40_000),
    tab: (open) => suspend([pick(open)], random() ** 2 * 40_000),
    sleep: (open) => suspend(open.filter(() => random() < 0.7), random() * 30_000),
    lifecycle: (open) => {
      const tab = pick(open);
      if (!tab.isSuspended) tab.dispatch("freeze");
      suspend([tab], random() * 20_000);
    },
    wake: (open) => pick(open).wake(),
    open: (open) => open.length < 6 && world.open(),
    close: (open) => open.length > 1 && pick(open).close(),
    cut: () => pick([...world.streams])?.cut(),
    send: (open) => open.forEach((tab) => !tab.isSuspended && random() < 0.5 && tab.send()),
  };
  const findOpen = () => world.tabs.filter(({ isClosed }) => !isClosed);
  for (let index = 0; index < 2 + random() * 3; index++) world.open();
  for (let index = 0; index < 60; index++) {
    await world.publish(1, random() * 1000);
    if (random() < 0.6) steps[pick(Object.keys(steps))](findOpen());
  }
  world.tabs.forEach((tab) => tab.wake());
  for (let index = 0; index < 60; index++) {
    await world.publish(1, 1000);
    for (const tab of world.tabs) if (tab.isSuspended) tab.wake(); // by a step that was due later
  }
  await world.run(3000);

  const { faults } = world;
  for (const { id, log, pending, state, isCurrent } of findOpen()) {
    if (state !== "connected") faults.push(`${id}: ${state}`);
    if (!isCurrent) faults.push(`${id}: ${log.at(-1)} is the last of ${world.published}`);
    if (pending.size) faults.push(`${id}: no answer to ${[...pending]}`);
  }
  if (world.streams.size !== 1) faults.push(`${world.streams.size} streams`);
  return faults;
}

for (let seed = Number(first); seed < Number(first) + Number(count); seed++) {
  const faults = await walk(seed);
  if (!faults.length) continue;
  console.log(JSON.stringify([seed, faults]));
  if (replaced) break; // one shows that the replaced part is needed
}
