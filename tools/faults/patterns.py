"""The subjects that a pattern matches, implemented independently of the bridge."""

__all__ = ["covers", "matches", "overlaps"]


def matches(pattern: str, subject: str) -> bool:
    """Return True if the pattern matches the subject."""
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
    """Return True if ``allowed`` matches every subject that the pattern matches."""
    wide, narrow = allowed.split("."), pattern.split(".")
    if wide[0] in ("*", ">") and narrow[0].startswith(("$", "_")):
        return False
    for index, token in enumerate(wide):
        if token == ">":
            return index < len(narrow)
        if index == len(narrow) or narrow[index] == ">" or token not in ("*", narrow[index]):
            return False
    return len(wide) == len(narrow)


def overlaps(one: str, other: str) -> bool:
    """Return True if a subject exists that both patterns match. Reserved subjects aren't considered."""
    first, second = one.split("."), other.split(".")
    for left, right in zip(first, second, strict=False):
        if ">" in (left, right):
            return True
        if left != right and "*" not in (left, right):
            return False
    return len(first) == len(second)
