"""Publishing and requests, for clients and for the app."""
