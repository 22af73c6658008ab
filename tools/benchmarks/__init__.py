"""Measures the bridge against its alternatives; ``python -m tools.benchmarks --list`` lists the scenarios."""
