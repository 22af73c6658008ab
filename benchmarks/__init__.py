"""Measures the bridge against what one would use in its place; ``python -m benchmarks --list`` tells what there is."""
