"""One supervised connection to NATS."""
