"""The randomised join test: clients of streams that come and go while NATS is harmed, and the check of their logs."""
