// A proxy that compresses each response that it may transform, as webpack-dev-server does. Prints its port.
import compression from "compression";
import express from "express";
import { createProxyMiddleware } from "http-proxy-middleware";

const [target] = process.argv.slice(2);
const server = express()
  .use(compression())
  .use(createProxyMiddleware({ target }))
  .listen(0, "127.0.0.1", () => console.log(server.address().port));
