"""A table of proxies: the browser client, a bare EventSource and a bare WebSocket behind each, in a real browser."""
