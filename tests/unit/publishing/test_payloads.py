from typing import Any

import msgspec
import pytest

from sanic_nats_bridge.publishing.payloads import encode_data


class Order(msgspec.Struct):
    item: str


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"\xff", b"\xff"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        ("ü", b"\xc3\xbc"),
        ("", b""),
        (b"", b""),
        (None, b"null"),
        (1.5, b"1.5"),
        ({"a": [1]}, b'{"a":[1]}'),
        (Order("tin"), b'{"item":"tin"}'),
    ],
)
def test_bytes_and_strings_stay_and_the_rest_is_json(data: Any, payload: bytes) -> None:
    encoded = encode_data(data)
    assert (encoded, type(encoded)) == (payload, bytes)


def test_other_data_is_an_error() -> None:
    with pytest.raises(TypeError, match="object"):
        encode_data(object())
    with pytest.raises(ValueError, match="surrogates"):
        encode_data("\ud800")
