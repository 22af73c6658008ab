"""Counters of one worker, and the metrics of all workers of a server."""
