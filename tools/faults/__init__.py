"""Does harm to NATS, the network and the bridge, and judges what every client got; ``--list`` tells how."""
