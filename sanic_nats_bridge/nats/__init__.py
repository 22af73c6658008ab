"""The supervised connection to NATS."""
