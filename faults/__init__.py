"""Does harm to NATS, to the network and to the bridge, and judges what every client got; ``--list`` tells what there is."""
