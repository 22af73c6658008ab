"""The client protocol, sans I/O: messages, their encoding, subjects and session ids."""
