"""Development tools: benchmarks, fault injection, and their shared parts."""
