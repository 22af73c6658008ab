"""The prose check: each rule finds what it forbids, at the right line, and passes good text."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.prose import LIMITS, WORDS, Finding, Result, check, main, passages

BAD: dict[str, tuple[str, str]] = {
    "docstring opens with a question word": ("tools/a.py", '"""Whether it runs."""'),
    "attribute docstring opens with a question word": ("tools/a.py", 'LIMIT = 1\n"""How much is allowed."""'),
    "function docstring opens without a verb": ("tools/a.py", 'def f():\n    """The name."""'),
    "class docstring opens without a noun": ("tools/a.py", 'class A:\n    """Keeps a list."""'),
    "test name with a question word": ("tests/a.py", "def test_what_is_lost(): ..."),
    "stands": ("README.md", "The bridge stands at its path."),
    "fares": ("README.md", "It reports how the worker fares."),
    "anew": ("README.md", "The connection is made anew."),
    "whoever": ("README.md", "Send it to whoever asks."),
    "whatever": ("README.md", "It takes whatever comes."),
    "nobody, somebody, everybody": ("README.md", "A slow client holds nobody up."),
    "for ever": ("README.md", "It retries for\never."),
    "is no X": ("README.md", "This is a client that is no browser."),
    ", for (because)": ("README.md", "Retry later, for the server may be busy."),
    "hole": ("README.md", "The hole is announced."),
    "blank": ("README.md", "Separate them by blanks."),
    "a text, texts": ("tools/a.py", 'ERROR = "must be a text that is not empty"'),
    "leave out": ("README.md", "Its messages are left out."),
    "turn away": ("README.md", "Foreign pages are turned away."),
    "come back": ("README.md", "The client comes back by itself."),
    "is away": ("README.md", "Return 503 while NATS is away."),
    "hear": ("README.md", "The client hears of it."),
    "tell": ("README.md", "The app is told by a signal."),
    "say": ("README.md", "The log says so."),
    "is over": ("README.md", "The session is over."),
    "shut": ("README.md", "These subjects are shut."),
    "how it is": ("README.md", "Show how the connection is."),
    "where, in documents": ("docs/a.md", "Retry where it failed."),
    "where, in docstrings and comments": ("tools/a.py", "# Where it failed, retry."),
    "sentences of more than 25 words, in documents": ("docs/guides/a.md", " ".join(["word"] * 26) + "."),
}
"""A file for each rule that breaks it, once."""

GOOD: dict[str, str] = {
    "README.md": """\
# Slow clients

A slow client doesn't delay the others; `whatever stands` indefinitely. It isn't a browser, and there is no limit.
A `*` is a stand-in, a standard one. Send a text frame in the text format, as `text/event-stream`.
The page leaves the loop. Turn right. The file is over the limit, is over 3 MB, and a blank line ends it.
Shut down the server. For example, retry, for example after a second, for clients that are slow.

```python
# whoever fares anew where nobody stands
```

| Setting | Default |
|---|---|
| `linger` | one |

[Read on](docs/whatever-stands-here.md) at https://example.org/nobody/hears, <span title="whoever">now</span>.
""",
    "sanic_nats_bridge/a.py": '''\
"""A module."""

LIMIT = 3
"""The most that is allowed."""


class Store:
    """One store of counts."""

    class Counts:
        """Counts of messages."""

    @property
    def size(self):
        """The size in bytes."""

    def left_out(self):
        """Return the ``texts that are left out``."""
        raise ValueError("must be a non-empty string")  # noqa: E501

    def pass_on(self):
        """Pass it on."""

    def bring(self):
        """Bring it."""

    def feed(self):
        """Feed it."""

    def name(self):
        """Name the subject."""

    def anew(self, whoever="whoever", hole="hole blank"):
        """Re-send the frame.

        It returns the ``shut`` one.
        """
''',
    "example_app/a.js": """\
/** The state of the connection. */
const hole = "whoever";  // a gap
const pattern = /whoever hears this/;
const path = `the path ${whoever} of it`;
""",
    "sanic_nats_bridge/node_modules/a.js": "// whoever hears this anew",
    "docs/page.css": "/* whoever */",
}


def results(root: Path, files: Mapping[str, str]) -> dict[str, Result]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return {result.rule: result for result in check(list(passages(root)))}


def lines(result: Result) -> list[tuple[str, int]]:
    return [(finding.path, finding.line) for finding in result.findings]


def test_every_rule_has_limit_and_bad_example() -> None:
    assert BAD.keys() == LIMITS.keys()
    assert WORDS.keys() < LIMITS.keys()


@pytest.mark.parametrize("rule", LIMITS)
def test_each_rule_finds_its_violation(rule: str, tmp_path: Path) -> None:
    path, content = BAD[rule]
    found = results(tmp_path, {path: content})[rule]
    assert len(found.findings) == 1
    assert found.count > 0


def test_good_text_breaks_no_rule(tmp_path: Path) -> None:
    found = results(tmp_path, GOOD)
    assert {rule: result.findings for rule, result in found.items() if result.findings} == {}


def test_finding_has_file_and_line(tmp_path: Path) -> None:
    files = {
        "docs/a.md": "# Title\n\n```\ncode\n```\n\n`a\nspan`, then anew.\n",
        "tools/a.py": '"""A module.\n\nMade anew."""\n\n# Made\n# anew.\nx = 1  # anew\ny = f"made {x} anew by us"\n',
        "example_app/a.ts": "/**\n * A client,\n * made anew. */\nlet x; // one\n// made anew\nf('it is made anew');\n",
    }
    found = results(tmp_path, files)["anew"]
    assert sorted(lines(found)) == [
        ("docs/a.md", 8),
        ("example_app/a.ts", 3),
        ("example_app/a.ts", 5),
        ("example_app/a.ts", 6),
        ("tools/a.py", 3),
        ("tools/a.py", 6),
        ("tools/a.py", 7),
        ("tools/a.py", 8),
    ]


@pytest.mark.parametrize("word", ["What", "Who", "Whoever", "How", "Which", "Whether", "Where", "When", "Whatever"])
@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("docstring", '"""{} it."""'),
        ("docstring", 'class A:\n    """{} it."""'),
        ("docstring", '@property\ndef a():\n    """{} it."""'),
        ("docstring", 'async def a():\n    """{} it."""'),
        ("attribute docstring", 'A = 1\n"""{} it."""'),
        ("attribute docstring", 'class A:\n    b: int\n    """{} it."""'),
    ],
    ids=["module", "class", "property", "function", "constant", "attribute"],
)
def test_docstring_must_not_open_with_question_word(rule: str, source: str, word: str, tmp_path: Path) -> None:
    found = results(tmp_path, {"tools/a.py": source.format(word)})
    counts = {name: result.count for name, result in found.items() if name.endswith("opens with a question word")}
    assert {name for name, count in counts.items() if count} == {f"{rule} opens with a question word"}


@pytest.mark.parametrize("comment", ["/** Whether it runs. */", "/**\n * Whether it runs.\n */"])
def test_jsdoc_must_not_open_with_question_word(comment: str, tmp_path: Path) -> None:
    assert results(tmp_path, {"example_app/a.ts": comment})["docstring opens with a question word"].count == 1


@pytest.mark.parametrize(
    "opening",
    ["A name", "The name", "It returns", "They return", "Returns", "Called once", "Waiting", "Nothing", "Of these",
     "``name``", "Path of it", "Messages", "NATS has it", "Name of it", "All of it", "sanic-ext calls it"],
)  # fmt: skip
def test_function_docstring_must_open_with_verb(opening: str, tmp_path: Path) -> None:
    source = f'async def a():\n    """{opening}, and more."""\n'
    assert results(tmp_path, {"tools/a.py": source})["function docstring opens without a verb"].count == 1


@pytest.mark.parametrize(
    "opening", ["Keeps it", "Keep it", "It keeps", "Counts it", "From it", "There is", "One of it"]
)
def test_class_docstring_must_open_with_noun(opening: str, tmp_path: Path) -> None:
    source = f'class A:\n    """{opening}, and more."""\n'
    assert results(tmp_path, {"tools/a.py": source})["class docstring opens without a noun"].count == 1


def test_where_is_counted_per_thousand_words(tmp_path: Path) -> None:
    text = "where " + "word " * 399 + "`where`\n\n```\nwhere\n```\n"
    found = results(tmp_path, {"README.md": text, "docs/a/b.md": "word " * 599})
    assert found["where, in documents"].count == 1


def test_long_sentences_are_counted_as_percentage(tmp_path: Path) -> None:
    long = " ".join(["Word"] * 26)
    short = "This is a short sentence."
    items = f"- {' '.join(['word'] * 25)}\n- {short}\n\n| a | b |\n"
    text = f"{short} {short} (e.g. Words like this one.)\n\n{long}.\n\n{items}"
    found = results(tmp_path, {"README.md": text})["sentences of more than 25 words, in documents"]
    assert found.count == round(100 / 6, 1)
    assert [finding.line for finding in found.findings] == [3]


def test_code_span_counts_as_one_word(tmp_path: Path) -> None:
    text = "Set `a b c` " + " ".join(["word"] * 23) + ".\n"
    rule = "sentences of more than 25 words, in documents"
    assert results(tmp_path, {"README.md": text})[rule].count == 0
    assert results(tmp_path, {"README.md": text.replace(".\n", " `d`.\n")})[rule].count == 100


def test_script_fails_above_limit_and_prints_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("Made anew.\n\nMade `so` anew.\n")
    monkeypatch.setitem(LIMITS, "anew", 1)
    assert main(["--root", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "anew" in shown
    assert "README.md:1: Made anew." in shown
    assert "README.md:3: Made `\N{HORIZONTAL ELLIPSIS}` anew." in shown
    monkeypatch.setitem(LIMITS, "anew", 2)
    assert main(["--root", str(tmp_path)]) == 0
    assert "README.md:1" not in capsys.readouterr().out
    monkeypatch.setitem(LIMITS, "anew", 0)
    assert main(["--root", str(tmp_path), "--report"]) == 0
    assert "README.md:1: Made anew." in capsys.readouterr().out


def test_finding_is_formatted_like_compiler_message() -> None:
    assert str(Finding("README.md", 3, "Made anew.")) == "README.md:3: Made anew."
