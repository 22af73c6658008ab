// An Express app with http-proxy-middleware, as its README shows it: PORT, TARGET and the options, as JSON.
import express from "express";
import { createProxyMiddleware } from "http-proxy-middleware";

const [port, target, options] = process.argv.slice(2);
const app = express();
app.use("/", createProxyMiddleware({ target: `http://127.0.0.1:${target}`, ...JSON.parse(options) }));
app.listen(Number(port), "127.0.0.1");
