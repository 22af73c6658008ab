"""Transports: the connection to one client, by server and protocol."""
