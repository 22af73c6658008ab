"""Which subjects a pattern means, said once more and independently of the bridge."""

__all__ = ["covers", "matches"]


def matches(pattern: str, subject: str) -> bool:
    """Whether a message on the subject comes by the pattern."""
    wanted, given = pattern.split("."), subject.split(".")
    reserved = wanted[0] in ("*", ">") and given[0].startswith(("$", "_"))
    if reserved or "" in given:
        return False
    if wanted[-1] == ">":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(one in ("*", other) for one, other in zip(wanted, given, strict=True))


def covers(allowed: str, pattern: str) -> bool:
    """Whether everything that the pattern means is allowed."""
    wide, narrow = allowed.split("."), pattern.split(".")
    for index, token in enumerate(wide):
        if index >= len(narrow):
            return False
        if token == ">":
            return index > 0 or not narrow[0].startswith(("$", "_"))
        if narrow[index] == ">" or token not in ("*", narrow[index]):
            return False
    return len(wide) == len(narrow)
