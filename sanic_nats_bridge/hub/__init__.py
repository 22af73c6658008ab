"""The shared NATS subscriptions of one worker, and the delivery of their messages."""
