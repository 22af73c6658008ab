// The development server of webpack with its `devServer.proxy`: PORT, TARGET, the options of the proxy and those of
// the server, as JSON.
import webpack from "webpack";
import WebpackDevServer from "webpack-dev-server";

const [port, target, proxyOptions, serverOptions] = process.argv.slice(2);
const proxy = { context: ["/nats", "/page"], target: `http://127.0.0.1:${target}`, ...JSON.parse(proxyOptions) };
const compiler = webpack({ mode: "development", entry: {} });
const options = { host: "127.0.0.1", port: Number(port), proxy: [proxy], ...JSON.parse(serverOptions) };
await new WebpackDevServer(options, compiler).start();
