// The development server of Vite with its `server.proxy`: a folder, PORT, TARGET and the options of the proxy, as JSON.
import { createServer } from "vite";

const [root, port, target, options] = process.argv.slice(2);
const proxy = { target: `http://127.0.0.1:${target}`, ...JSON.parse(options) };
const server = { host: "127.0.0.1", port: Number(port), strictPort: true, proxy: { "/nats": proxy, "/page": proxy } };
await (await createServer({ configFile: false, root, cacheDir: `${root}/cache`, server })).listen();
