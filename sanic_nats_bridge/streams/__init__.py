"""History and resume on JetStream: positions, the JetStream API, and what is built on them."""
