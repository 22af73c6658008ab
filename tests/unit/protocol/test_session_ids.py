import hashlib

import pytest

from sanic_nats_bridge.protocol.session_ids import digest, key_of, new_session_id, new_worker_id, worker_of


def test_a_session_id_says_which_worker_holds_it() -> None:
    worker = new_worker_id()
    ids = {new_session_id(worker) for _ in range(1_000)}
    assert len(ids) == 1_000
    assert {worker_of(session_id) for session_id in ids} == {worker}


def test_every_worker_has_an_id_of_its_own_that_is_one_token_of_a_subject() -> None:
    workers = {new_worker_id() for _ in range(1_000)}
    assert len(workers) == 1_000
    assert all(len(worker) == 16 and worker.isascii() and not set(worker) & set(".*> ") for worker in workers)


VALID = "QmdRmnhDODDbZtNlOrPFcya0fjsu0j9skX_RM_ivu5_aqQbE"


@pytest.mark.parametrize(
    "wrong", ["", VALID[:-1], VALID + "a", VALID + "\n", "*" + VALID[1:], ">" + VALID[1:], "ü" * 48]
)
def test_what_no_session_can_be_called_has_no_worker(wrong: str) -> None:
    assert worker_of(VALID) == VALID[:16]
    assert worker_of(wrong) is None


def test_a_session_is_named_by_its_id_or_by_its_key() -> None:
    key = hashlib.sha256(VALID.encode()).hexdigest()
    assert digest(VALID) == key_of(VALID) == key_of(key) == key
    assert key_of(key.upper()) != key


def test_what_is_no_utf_8_has_a_digest() -> None:
    assert digest("\ud800") != digest("")
