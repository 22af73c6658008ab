import gzip
import importlib
import re
from typing import Any

import pytest

from sanic_nats_bridge.routes.content_encoding import EncodedText, choose_coding

BROTLI: Any = importlib.import_module("brotli")  # it has no types
ALL = ("br", "gzip", "identity")
TEXT = b"let x = 1;\n" * 100


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        # RFC 9110, section 12.5.3: the examples, then its rules
        (["compress, gzip"], "gzip"),
        ([""], "identity"),
        (["*"], "br"),
        (["compress;q=0.5, gzip;q=1.0"], "gzip"),
        (["gzip;q=1.0, identity; q=0.5, *;q=0"], "gzip"),
        ([], "identity"),
        (["gzip"], "gzip"),
        (["gzip, deflate, br, zstd"], "br"),
        (["br;q=0.5, gzip;q=0.8"], "gzip"),
        (["gzip;q=0.001"], "gzip"),
        (["gzip;q=0"], "identity"),
        (["br;q=0, gzip;q=0.000"], "identity"),
        (["gzip;q=0, *"], "br"),
        (["br;q=0, *;q=0.1"], "gzip"),
        (["identity"], "identity"),
        (["identity;q=0.5, gzip;q=0.4"], "identity"),
        (["identity, gzip"], "gzip"),
        (["deflate"], "identity"),
        (["identity;q=0"], "identity"),
        (["*;q=0"], "identity"),
        # lists, spaces, letters, aliases
        (["deflate", "gzip"], "gzip"),
        (["GZip ; Q=0.5,\tBR;q=0.4"], "gzip"),
        ([", ,gzip,"], "gzip"),
        (["x-gzip"], "gzip"),
        # malformed members don't count as offers
        (["gzip;q=2"], "identity"),
        (["gzip;q=0.0001"], "identity"),
        (["gzip;q=-1"], "identity"),
        (["gzip;level=9"], "identity"),
        (["br gzip"], "identity"),
        (["gz\u00efp, br"], "br"),
    ],
)
def test_acceptable_coding_with_highest_weight_is_chosen(accepted: list[str], chosen: str) -> None:
    assert choose_coding(accepted, ALL) == chosen


def test_first_available_coding_of_equal_weight_is_chosen() -> None:
    assert choose_coding(["br, gzip"], ("gzip", "identity")) == "gzip"
    assert choose_coding(["br"], ("gzip", "identity")) == "identity"
    assert choose_coding(["br, gzip"], ("gzip", "br", "identity")) == "gzip"


def test_each_coding_has_same_text_and_its_own_etag() -> None:
    text = EncodedText(TEXT)
    representations = [text.select([coding]) for coding in ALL]
    assert [representation.coding for representation in representations] == list(ALL)
    brotlied, gzipped, plain = (representation.body for representation in representations)
    assert (BROTLI.decompress(brotlied), gzip.decompress(gzipped), plain) == (TEXT, TEXT, TEXT)
    assert len(brotlied) < len(gzipped) < len(plain)
    etags = {representation.etag for representation in representations}
    assert len(etags) == 3
    assert all(re.fullmatch(r'"[0-9a-f]{32}"', etag) for etag in etags)


def test_etags_are_identical_across_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    first = EncodedText(TEXT)
    monkeypatch.setattr("time.time", lambda: 0.0)  # gzip has a field for the time
    second = EncodedText(TEXT)
    assert [first.select([coding]) for coding in ALL] == [second.select([coding]) for coding in ALL]


@pytest.mark.parametrize("installed", ["brotli", "brotlicffi", None])
def test_brotli_is_used_if_brotli_package_is_installed(monkeypatch: pytest.MonkeyPatch, installed: str | None) -> None:
    def import_module(name: str) -> Any:
        if name != installed:
            raise ImportError(name)
        return BROTLI

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert EncodedText(TEXT).select(["br, gzip;q=0.5"]).coding == ("gzip" if installed is None else "br")
