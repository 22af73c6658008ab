"""The servers that are measured, each to be run in a process of its own; its port is the first line of its output."""
