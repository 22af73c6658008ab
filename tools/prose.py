"""``python -m tools.prose``: count what the style guide forbids, and fail above the limits of `LIMITS`.

It reads the docstrings, comments and string literals of the Python files, the comments and string literals of the
JavaScript and TypeScript files, the names of tests, and the documents. Code spans, code blocks, other identifiers and
URLs don't count.
``--report`` lists every place and always exits with status 0.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["LIMITS", "WORDS", "Finding", "Passage", "Result", "check", "main", "passages"]

LIMITS: dict[str, float] = {
    # Docstrings
    "docstring opens with a question word": 0,
    "attribute docstring opens with a question word": 0,
    "function docstring opens without a verb": 0,
    "class docstring opens without a noun": 0,
    "test name with a question word": 0,
    # Words, each with its plain alternative in `WORDS`
    "stands": 0,
    "fares": 0,
    "anew": 0,
    "whoever": 0,
    "whatever": 0,
    "nobody, somebody, everybody": 1,
    "for ever": 0,
    "is no X": 0,
    ", for (because)": 0,
    "hole": 0,
    "blank": 0,
    "a text, texts": 2,
    "leave out": 0,
    "turn away": 0,
    "come back": 0,
    "is away": 0,
    "hear": 0,
    "tell": 0,
    "say": 2,
    "is over": 0,
    "shut": 0,
    "how it is": 0,
    # Per 1,000 words
    "where, in documents": 0.6,
    "where, in docstrings and comments": 0.1,
    # Percent
    "sentences of more than 25 words, in documents": 2,
}
"""The most that each rule allows: a number of places, unless the comment above the rule gives another unit.

Lower a limit whenever its count falls. The aim is 0 places, 1.5 per 1,000 words, and 5 percent.
"""

_SENTENCE_WORDS = 25
_LEAST_WORDS = 4  # a shorter piece is a cell or a heading

FOLDERS = ("sanic_nats_bridge", "example_app", "examples", "tools", "tests", "docs")
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
# These two hold the forbidden words as data.
_EXEMPT = {"tools/prose.py", "tests/tools/test_prose.py"}
_FOREIGN_FOLDERS = {"node_modules", "__pycache__", "build", "dist", "site"}

Kind: TypeAlias = Literal[
    "module", "class", "function", "property", "attribute", "jsdoc", "comment", "string", "test", "doc"
]
_DOCSTRINGS: tuple[Kind, ...] = ("module", "class", "function", "property", "jsdoc")

_CODE = "\N{CURRENCY SIGN}"  # takes the place of a code span, and counts as one word


@dataclass(frozen=True)
class Word:
    """A forbidden word."""

    pattern: str
    plain: str


WORDS = {
    "stands": Word(r"stands?(?!-in)|standing|stood", "is, exists"),
    "fares": Word(r"fares?|faring", "status, state"),
    "anew": Word(r"anew", "again; restart, recreate"),
    "whoever": Word(r"who(so)?ever|whomever", "the client, each client that"),
    "whatever": Word(r"what(so)?ever|whichever|wherever", "any, everything; name the thing"),
    "nobody, somebody, everybody": Word(r"(no|some|every)(body|one)(?! of\b)", "no client, a client, every client"),
    "for ever": Word(r"for\s?ever", "indefinitely"),
    "is no X": Word(
        r"(?<!there )(?<!there\n)(?:is|are|was|were|be|been)\s+no\s+"
        r"(?!(?:longer|more|less|fewer|later|earlier|larger|smaller|faster|slower|better|worse|different)\b)\w+",
        "isn't a X",
    ),
    ", for (because)": Word(
        # A clause with a verb of its own, and not "for clients that are".
        r"(?<=,)\s+for\s+(?!example\b|instance\b)"
        r"(?:(?!(?:that|which|who|whose|whom|what|whatever|whichever|as)\b)[\w'-]+\s+){1,5}?"
        r"(?:is|are|was|were|has|have|had|can|could|may|might|must|will|would|does|do|did|needs?|takes?|gives?|uses?|comes?)",
        "because",
    ),
    "hole": Word(r"holes?", "gap"),
    "blank": Word(r"blanks?(?!\s+lines?\b)", "space"),
    "a text, texts": Word(
        r"(?:texts|(?:a|one|each|every|this|that)\s+text)(?![/-])"
        r"(?!\s+(?:frame|message|format|file|field|editor|node|area|box|encoding|protocol)s?\b)",
        "string",
    ),
    "leave out": Word(r"(?:leave|leaves|left|leaving)\s+(?:\w+\s+){0,5}?out", "skip, drop"),
    "turn away": Word(r"turn(?:s|ed|ing)?\s+(?:\w+\s+){0,4}?away", "reject"),
    "come back": Word(r"(?:come|comes|came|coming)\s+back", "reconnect, return"),
    "is away": Word(r"(?:is|are|was|were|be|been|goes|gone|went)\s+away", "disconnected, unavailable"),
    "hear": Word(r"hears?|heard|hearing", "receive"),
    "tell": Word(r"tells?|told|telling", "notify, report; distinguish"),
    "say": Word(r"says?|said|saying", "log, report, state; name the subject"),
    "is over": Word(
        r"(?:is|are|was|were)\s+over(?!\s+(?:the|its|a|an|that|this|it|\d\S*|\W)(?!\w))", "has ended, expired"
    ),
    "shut": Word(r"shuts?(?!\s+down\b)", "deny, close"),
    "how it is": Word(r"how\s+(?:it|they|things|the\s+\w+)\s+(?:is|are|was|were)(?=\s*[.,;:)])", "the state of"),
}
"""Forbidden words by the name of their rule: what matches, ignoring case, and the plain alternative."""

_WORD_PATTERNS = {
    name: re.compile(rf"(?<![\w./-])(?:{word.pattern})(?![\w-]|\.\w)", re.IGNORECASE) for name, word in WORDS.items()
}
_WHERE = re.compile(r"\bwhere\b", re.IGNORECASE)
_RELATIVE = re.compile(r"\b(?:what|who|whom|whose|where|whether|why)\b")
_WORD = re.compile(rf"[^\W_][\w'\N{{RIGHT SINGLE QUOTATION MARK}}-]*|{_CODE}")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUESTION_WORDS = _words(
    "what who whoever whom whose how which whichever whether where wherever when whenever whatever why"
)
_PRONOUNS = _words("""
    it they he she we you i this that these those there here one ones something anything nothing everything
    somebody anybody nobody everybody none
""")
_PREPOSITIONS = _words("""
    about above after against among and as at because before behind below beneath beside between beyond but by despite
    down during except for from if in inside into like near nor not of off on once onto or out outside over past since
    so than then though through till to toward towards under unless until up upon while with within without yet
""")
_QUANTITIES = _words("""
    a an the no all any both each either enough every few many more most much neither several some such two three four
    five six seven eight nine ten first last other another same true false
""")
_NOUNS = _words("""
    byte client data host json message milliseconds name number opcode origin path pattern reply room session size
    subject time type url value worker answer key
""")
# Verbs and nouns at once: "Name the subject." is good, "Name of a subject." isn't.
_VERBS_TOO = _words("answer host key message name number reply size time type value")
_VERBS_IN_S = _words("alias bias canvas focus")
_VERBS_IN_ED = _words("bleed breed embed exceed feed heed need proceed seed shed speed succeed")
_VERBS_IN_ING = _words("bring fling ping ring sing spring string swing")
_THIRD_PERSONS = _words("""
    applies asks begins brings carries collects connects decides decodes delivers does encodes follows gets gives goes
    has hears holds is keeps knows leaves lets listens makes opens provides publishes raises receives registers removes
    returns runs sends serves speaks spreads stands starts stops stores subscribes takes tells tries turns waits writes
""")
# Plurals of nouns too: "Counts of messages" is good, "Counts messages" isn't.
_THIRD_PERSONS_OR_PLURALS = _words("""
    acts answers beats calls checks closes counts cuts draws ends fills forwards hands limits matches measures notes
    parses reads records reports resets shows sorts steps tests tracks watches works
""")
_IMPERATIVES = _words("""
    apply ask begin bring carry connect decide decode deliver do encode follow get give go have hear hold keep let make
    provide publish raise receive remove return run send serve speak subscribe take tell wait write
""")
_AFTER_A_NOUN = _words("of for in from by that and to with which between on at per")


@dataclass(frozen=True)
class Passage:
    """Text for people, in which code is masked and line ends are kept."""

    path: str
    line: int
    kind: Kind
    text: str

    def line_at(self, position: int) -> int:
        """Return the number of the line in the file that holds this position of the text."""
        return self.line + self.text.count("\n", 0, position)


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule."""

    path: str
    line: int
    excerpt: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.excerpt}"


@dataclass(frozen=True)
class Result:
    """The count of one rule, in the unit of its limit, and the places that were counted."""

    rule: str
    count: float
    findings: Sequence[Finding]

    @property
    def limit(self) -> float:
        """The most that the rule allows."""
        return LIMITS[self.rule]

    @property
    def passed(self) -> bool:
        """True if the count is within the limit."""
        return self.count <= self.limit


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of rules and return the exit status: 1 if a count is above its limit."""
    parser = argparse.ArgumentParser(prog="python -m tools.prose", description=__doc__)
    parser.add_argument("--report", action="store_true", help="list every place, and exit with status 0")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="folder of the project")
    options = parser.parse_args(arguments)
    results = check(list(passages(options.root)))
    width = max(len(result.rule) for result in results)
    print(f"{'rule':{width}}  {'count':>6}  {'limit':>6}")  # noqa: T201 - a command
    for result in results:
        mark = "" if result.passed else "  above"
        print(f"{result.rule:{width}}  {result.count:6g}  {result.limit:6g}{mark}")  # noqa: T201
    for result in results:
        if result.findings and (options.report or not result.passed):
            plain = f" (plain: {WORDS[result.rule].plain})" if result.rule in WORDS else ""
            print(f"\n{result.rule}{plain}", *result.findings, sep="\n  ")  # noqa: T201
    return 0 if options.report or all(result.passed for result in results) else 1


def check(read: Sequence[Passage]) -> list[Result]:
    """Count every rule in these passages, in the order of `LIMITS`."""
    documents = [passage for passage in read if passage.kind == "doc"]
    comments = [passage for passage in read if passage.kind not in ("doc", "string", "test")]
    found = {
        "docstring opens with a question word": _openings(read, _DOCSTRINGS, _asks),
        "attribute docstring opens with a question word": _openings(read, ("attribute",), _asks),
        "function docstring opens without a verb": _openings(read, ("function",), _lacks_verb),
        "class docstring opens without a noun": _openings(read, ("class",), _lacks_noun),
        "test name with a question word": _matches(_RELATIVE, [passage for passage in read if passage.kind == "test"]),
    } | {name: _matches(pattern, read) for name, pattern in _WORD_PATTERNS.items()}
    results = {name: Result(name, len(findings), findings) for name, findings in found.items()}
    for name, parts in (("where, in documents", documents), ("where, in docstrings and comments", comments)):
        findings = _matches(_WHERE, parts)
        words = sum(_word_count(passage.text) for passage in parts)
        results[name] = Result(name, round(1000 * len(findings) / max(words, 1), 2), findings)
    name = "sentences of more than 25 words, in documents"
    results[name] = _long_sentences(name, documents)
    return [results[name] for name in LIMITS]


def passages(root: Path) -> Iterator[Passage]:
    """Yield all text for people in the project's folder."""
    files = [root / name for name in DOCUMENTS]
    files += [file for folder in FOLDERS for file in sorted((root / folder).rglob("*"))]
    for file in files:
        relative = file.relative_to(root)
        reader = _READERS.get(file.suffix)
        if reader is None or not file.is_file() or str(relative) in _EXEMPT or _FOREIGN_FOLDERS & set(relative.parts):
            continue
        yield from reader(str(relative), file.read_text())


def _python_passages(path: str, source: str) -> Iterator[Passage]:
    tree = ast.parse(source)
    docstrings: set[ast.AST] = set()
    for kind, node in _docstrings(tree):
        docstrings.add(node)
        yield Passage(path, node.lineno, kind, _without_code(str(node.value)))
    yield from _strings(path, tree, docstrings)
    for test in ast.walk(tree):
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) and test.name.startswith("test_"):
            yield Passage(path, test.lineno, "test", test.name.removeprefix("test_").replace("_", " "))
    for line, text in _comments(source):
        text = re.sub(r"#\s*(?:noqa|type|fmt|pragma)\b:?[^#\n]*", "", text)
        yield Passage(path, line, "comment", _without_code(text.replace("#", " ")))


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment; comments on lines of their own that follow each other are one."""
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            own_line = token.line.lstrip().startswith("#")
            if block and not (own_line and line == start + len(block)):
                yield start, "\n".join(block)
                block = []
            start = start if block else line
            block.append(token.string)
            if not own_line:
                yield start, token.string
                block = []
    if block:
        yield start, "\n".join(block)


def _docstrings(tree: ast.AST) -> Iterator[tuple[Kind, ast.Constant]]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for index, statement in enumerate(body if isinstance(body, list) else ()):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value
                kind = _docstring_kind(node) if index == 0 else "attribute"
                if isinstance(value.value, str) and kind is not None:
                    yield kind, value


def _docstring_kind(node: ast.AST) -> Kind | None:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        return "property" if decorators & {"property", "cached_property", "setter"} else "function"
    return None


def _strings(path: str, tree: ast.AST, docstrings: set[ast.AST]) -> Iterator[Passage]:
    """Yield the string literals that read like a sentence: at least three words in a row."""
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):  # breadth first, so an f-string comes before its parts
        if isinstance(node, ast.JoinedStr):
            inner.update(node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else _CODE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings | inner:
            text = node.value
        else:
            continue
        if _is_sentence(text):
            yield Passage(path, node.lineno, "string", _without_code(text))


def _is_sentence(text: str) -> bool:
    return re.search(r"[A-Za-z']+[,:;]? [A-Za-z']+[,:;]? [A-Za-z']+", text) is not None


_SCRIPT_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*(?:\n[ \t]*//[^\n]*)*|/\*.*?\*/)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)
      | (?P<regex>(?<=[(,=:\[!&|?{};\n])[ ]*/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/)
    """,
    re.DOTALL | re.VERBOSE,
)


def _script_passages(path: str, source: str) -> Iterator[Passage]:
    for token in _SCRIPT_TOKEN.finditer(source):
        text, line = token.group(), source.count("\n", 0, token.start()) + 1
        if token["comment"]:
            kind: Kind = "jsdoc" if text.startswith("/**") else "comment"
            inner = re.sub(r"^[ \t]*\*(?!/)|^/\*\*?|\*/$|^[ \t]*//", "", text, flags=re.MULTILINE)
            yield Passage(path, line, kind, _without_code(inner))
        elif token["string"]:
            inner = re.sub(r"\$\{[^}]*\}", _CODE, text[1:-1])
            if _is_sentence(inner):
                yield Passage(path, line, "string", _without_code(inner, quote=""))


def _document_passages(path: str, source: str) -> Iterator[Passage]:
    text = re.sub(r"\A---\n.*?\n---\n", _masked, source, flags=re.DOTALL)
    text = re.sub(r"^([ \t]*)(`{3,}|~{3,})[^\n]*\n.*?^\1\2[ \t]*$", _masked, text, flags=re.DOTALL | re.MULTILINE)
    text = text.replace("<br>", "|   ")  # parts of a cell
    text = re.sub(r"<!--.*?-->|<[a-zA-Z/][^>]*>", _masked, text, flags=re.DOTALL)
    text = _without_code(text)
    text = re.sub(r"(?<=\])\([^)\n]*\)|(?<=\])\[[^\]\n]*\]", _masked, text)
    yield Passage(path, 1, "doc", re.sub(r"!\[|[\[\]*]", _masked, text))


_READERS: dict[str, Callable[[str, str], Iterator[Passage]]] = {
    ".py": _python_passages,
    ".js": _script_passages,
    ".mjs": _script_passages,
    ".ts": _script_passages,
    ".md": _document_passages,
}


def _masked(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def _without_code(text: str, quote: str = "`") -> str:
    """Return the text with a sign for each code span; lines keep their numbers."""
    if quote:
        text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", _code_mark, text, flags=re.DOTALL)
    return re.sub(r"https?://[^\s)>]+", _code_mark, text)


def _code_mark(match: re.Match[str]) -> str:
    return _CODE + "\n" * match.group().count("\n")


def _openings(read: Sequence[Passage], kinds: Sequence[Kind], breaks: Callable[[str, str], bool]) -> list[Finding]:
    findings = []
    for passage in read:
        words = [word.strip(".,;:!?()\"'") for word in passage.text.split()[:2]] + ["", ""]
        if passage.kind in kinds and breaks(words[0], words[1]):
            start = len(passage.text) - len(passage.text.lstrip())
            findings.append(_finding(passage, start, start))
    return findings


def _asks(first: str, _: str) -> bool:
    return first.lower() in _QUESTION_WORDS


def _lacks_verb(opening: str, second: str) -> bool:
    if re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)?", opening) is None:  # a code span, an acronym, a number
        return True
    first = opening.lower()
    if first in _PRONOUNS | _PREPOSITIONS | _QUANTITIES | _QUESTION_WORDS:
        return True
    if first in _NOUNS:
        return first not in _VERBS_TOO or second in _AFTER_A_NOUN
    return (
        (first.endswith("s") and not first.endswith("ss") and first not in _VERBS_IN_S)
        or (first.endswith("ed") and first not in _VERBS_IN_ED)
        or (first.endswith("ing") and first not in _VERBS_IN_ING)
    )


def _lacks_noun(opening: str, second: str) -> bool:
    first = opening.lower()
    if first in (_PRONOUNS - {"one"}) | _PREPOSITIONS | _QUESTION_WORDS | _THIRD_PERSONS | _IMPERATIVES:
        return True
    if first == "one":
        return second in {"that", "which", "who", "of", "for"}
    return first in _THIRD_PERSONS_OR_PLURALS and second not in _AFTER_A_NOUN


def _matches(pattern: re.Pattern[str], read: Sequence[Passage]) -> list[Finding]:
    return [
        _finding(passage, match.start(), match.end()) for passage in read for match in pattern.finditer(passage.text)
    ]


def _finding(passage: Passage, start: int, end: int) -> Finding:
    before = passage.text[:start].rpartition("\n")[2][-40:]
    after = passage.text[start : end + 40].partition("\n\n")[0]
    return Finding(passage.path, passage.line_at(start), _excerpt(before + after))


def _excerpt(text: str) -> str:
    return " ".join(text.split()).replace(_CODE, "`\N{HORIZONTAL ELLIPSIS}`")


def _word_count(text: str) -> int:
    return sum(1 for _ in _WORD.finditer(text))


def _long_sentences(rule: str, documents: Sequence[Passage]) -> Result:
    total, findings = 0, []
    for passage in documents:
        for start, sentence in _sentences(passage.text):
            words = _word_count(sentence)
            total += words >= _LEAST_WORDS
            if words > _SENTENCE_WORDS:
                excerpt = f"{words} words: {_excerpt(sentence[:70])}"
                findings.append(Finding(passage.path, passage.line_at(start), excerpt))
    return Result(rule, round(100 * len(findings) / max(total, 1), 1), findings)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the start and text of each sentence; cells, headings and list items end one too."""
    block = r"\n[ \t]*\n|\n[ \t]*(?=[-+#>|]|\d+\.\s)|\|"
    sentence = rf"(?<!e\.g)(?<!i\.e)(?<!cf)(?<!vs)[.!?][\"')]*\s+(?=[A-Z\"'({_CODE}\d])"
    start = 0
    for end in re.finditer(f"{block}|{sentence}", text):
        yield start, text[start : end.end()]
        start = end.end()
    yield start, text[start:]


if __name__ == "__main__":
    sys.exit(main())
