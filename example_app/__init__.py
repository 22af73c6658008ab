"""A page that shows the messages of NATS subjects as they arrive, and a test publisher."""
