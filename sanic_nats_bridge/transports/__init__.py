"""The transports: how bytes reach and leave one client."""
