"""The measured servers, each run in a process of its own. The first line of a server's output is its port."""
