"""The doors: what Sanic hands in, and what goes back."""
