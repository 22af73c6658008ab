"""Content codings: the encoded bodies of a document, and the choice by ``Accept-Encoding`` (RFC 9110, 12.5.3)."""

import contextlib
import gzip
import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["IDENTITY", "EncodedText", "Representation", "choose_coding"]

IDENTITY = "identity"

_BROTLI_PACKAGES = ("brotli", "brotlicffi")
_ALIASES = {"x-gzip": "gzip"}  # RFC 9110, section 8.4.1.3
_WEIGHTED = re.compile(r"\s*([\w!#$%&'*+.^`|~-]+)\s*(?:;\s*[qQ]=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Representation:
    """A document in one content coding."""

    coding: str
    body: bytes
    etag: str


class EncodedText:
    """A document in all available content codings, compressed once."""

    def __init__(self, text: bytes) -> None:
        self._representations = {coding: _represent(coding, body) for coding, body in _encode(text)}

    def select(self, accepted: Iterable[str]) -> Representation:
        """Return the representation for a request with these values of ``Accept-Encoding``."""
        return self._representations[choose_coding(accepted, tuple(self._representations))]


def choose_coding(accepted: Iterable[str], available: Sequence[str]) -> str:
    """Return the available coding with the highest weight, the first one of equals.

    If no coding is acceptable it is `IDENTITY`. This includes a client that excludes even that: RFC 9110,
    section 12.4.1, lets a server disregard the field.
    """
    weights = dict(_weights(accepted))
    rest = weights.get("*", 0.0)
    best = max(available, key=lambda coding: weights.get(coding, rest))
    return best if weights.get(best, rest) else IDENTITY


def _weights(accepted: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Yield the codings with their weights; skip malformed ones."""
    for value in accepted:
        for item in value.split(","):
            if weighted := _WEIGHTED.fullmatch(item):
                coding = weighted[1].lower()
                yield _ALIASES.get(coding, coding), float(weighted[2] or 1)


def _represent(coding: str, body: bytes) -> Representation:
    # Each coding needs an entity tag of its own (RFC 9110, section 8.8.3.3).
    return Representation(coding, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _encode(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the codings with the encoded text, the smallest first."""
    if (brotli := _brotli()) is not None:
        yield "br", brotli(text)
    yield "gzip", gzip.compress(text, mtime=0)  # without the time, all workers have the same entity tag
    yield IDENTITY, text


def _brotli() -> Callable[[bytes], bytes] | None:
    for package in _BROTLI_PACKAGES:
        with contextlib.suppress(ImportError):
            compress: Callable[[bytes], bytes] = importlib.import_module(package).compress
            return compress
    return None
