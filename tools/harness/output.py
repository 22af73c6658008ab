"""Output of a program, for a terminal or for the process that started it."""

import sys

__all__ = ["print_line"]


def print_line(text: str) -> None:
    """Print a line, and flush it: a pipe would hold it back."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
