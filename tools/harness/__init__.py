"""Processes, tables and a TCP proxy, shared by the benchmarks, the faults and the tests."""
