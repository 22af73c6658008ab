"""Faults under clients that publish with acknowledgement, and repeat until they have an answer."""
