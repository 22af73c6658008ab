// A server of http-proxy, as its README shows it: PORT, TARGET and further options, as JSON.
import httpProxy from "http-proxy";

const [port, target, options] = process.argv.slice(2);
const server = httpProxy.createProxyServer({ target: `http://127.0.0.1:${target}`, ...JSON.parse(options) });
// Without a listener the process would end when a browser closes its connection.
server.on("error", (error, request, response) => response?.destroy?.());
server.listen(Number(port), "127.0.0.1");
