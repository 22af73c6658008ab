"""Authorization: what a client may subscribe to, and from which origins."""
