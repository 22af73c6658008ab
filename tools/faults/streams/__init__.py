"""Faults under clients of streams, which resume with the ids that they hold."""
