"""The sections of docstrings name what the code has."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("sanic_nats_bridge", "example_app", "tools")
ARGUMENT = re.compile(r"^    \*{0,2}(\w+)(?: \([^)]*\))?:", re.MULTILINE)


def documented(source: str) -> Iterator[tuple[str, set[str], set[str]]]:
    """Yield the functions and classes with a section of arguments: name, arguments, parameters."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            section = re.search(r"^Args:\n((?: +.*\n?|\n)+)", ast.get_docstring(node) or "", re.MULTILINE)
            if section:
                yield node.name, set(ARGUMENT.findall(section[1])), parameters(node)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """Return the parameters of a function, or of a class's constructor."""
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                return parameters(part)
        # A dataclass or a struct.
        return {
            part.target.id
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
    given = node.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {argument.arg for argument in found if argument is not None}


@pytest.mark.parametrize("folder", FOLDERS)
def test_documented_arguments_are_parameters(folder: str) -> None:
    found = [
        (file.name, name, argument)
        for file in sorted((ROOT / folder).rglob("*.py"))
        for name, arguments, expected in documented(file.read_text())
        for argument in sorted(arguments - expected)
    ]
    assert not found


def test_stale_argument_is_found() -> None:
    source = '''
class Timer:
    """A timer.

    Args:
        delay: Seconds.
        repeat: Whether it starts again, with a
            second line: indented.
    """

    def __init__(self, delay: float) -> None: ...

    def start(self, *names: str) -> None:
        """Start.

        Args:
            names: The names.

        Raises:
            OSError: Not an argument.
        """
'''
    assert [(name, arguments - expected) for name, arguments, expected in documented(source)] == [
        ("Timer", {"repeat"}),
        ("start", set()),
    ]
