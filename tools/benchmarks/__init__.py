"""Benchmarks of the bridge and its alternatives. ``python -m tools.benchmarks --list`` lists the scenarios."""
