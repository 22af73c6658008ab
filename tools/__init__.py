"""Development tools: benchmarks, fault injection and what they share."""
