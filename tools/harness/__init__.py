"""Processes, servers, certificates, a browser and tables, shared by the tools and the tests."""
