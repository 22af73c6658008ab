import pytest

from sanic_nats_bridge.errors import CloseCode
from sanic_nats_bridge.metrics.counters import OTHER_CODES, Counters


@pytest.mark.parametrize("code", [*CloseCode, 1000, 1006])
def test_known_close_codes_are_counted_separately(code: int) -> None:
    counters = Counters()
    counters.count_close(code)
    counters.count_close(code)
    assert counters.closes == {str(int(code)): 2}


def test_client_defined_close_codes_are_counted_together() -> None:
    counters = Counters()
    for code in range(3000, 4400):
        counters.count_close(code)
    assert counters.closes == {OTHER_CODES: 1400}
