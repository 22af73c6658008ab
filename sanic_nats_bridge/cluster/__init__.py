"""Communication with the other workers of the app."""
