import types
from collections.abc import Mapping

import pytest

from sanic_nats_bridge.compatibility import (
    Expectation,
    IncompatiblePackageError,
    coroutine,
    function,
    require,
    slot,
    uses,
)


class Owner:
    __slots__ = ("number",)

    def method(self, value: int) -> None:
        self.number = value

    async def work(self) -> None: ...


@pytest.mark.parametrize(
    "expected",
    [
        {"number": slot},
        {"method": function("self", "value")},
        {"method": uses("number")},
        {"work": coroutine("self")},
        {"number": slot, "work": function("self")},
    ],
)
def test_expected_parts_are_accepted(expected: Mapping[str, Expectation]) -> None:
    require("msgspec", Owner, expected)


@pytest.mark.parametrize(
    "expected",
    [
        {"numbers": slot},
        {"method": slot},
        {"method": function("self")},
        {"method": coroutine("self", "value")},
        {"method": uses("other")},
        {"work": coroutine("self", "value")},
    ],
)
def test_other_parts_raise_one_line_with_package_version_and_name(expected: Mapping[str, Expectation]) -> None:
    (name,) = expected
    with pytest.raises(IncompatiblePackageError) as raised:
        require("msgspec", Owner, expected)
    assert str(raised.value).startswith("sanic-nats-bridge does not work with msgspec 0.")
    assert f"whose Owner has no such '{name}'" in str(raised.value)
    assert str(raised.value).isprintable()


def test_message_names_object_and_uninstalled_package() -> None:
    with pytest.raises(IncompatiblePackageError, match=r"no-such-package \(of an unknown version\), whose SimpleName"):
        require("no-such-package", types.SimpleNamespace(), {"a": slot})
