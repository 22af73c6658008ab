"""A page that follows NATS subjects live, with a publisher to have something to follow."""
