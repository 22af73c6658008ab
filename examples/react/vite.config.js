import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  server: {
    // Without `changeOrigin`: the bridge compares the page's origin with the Host header.
    proxy: { "/nats": { target: process.env.BRIDGE ?? "http://127.0.0.1:8000", ws: true } },
  },
});
