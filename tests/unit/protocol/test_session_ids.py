import hashlib

import pytest

from sanic_nats_bridge.protocol.session_ids import digest, key_of, new_session_id, new_worker_id, worker_of


def test_session_id_is_unique_and_contains_worker_id() -> None:
    worker = new_worker_id()
    ids = {new_session_id(worker) for _ in range(1_000)}
    assert len(ids) == 1_000
    assert {worker_of(session_id) for session_id in ids} == {worker}


def test_worker_id_is_unique_and_one_subject_token() -> None:
    workers = {new_worker_id() for _ in range(1_000)}
    assert len(workers) == 1_000
    assert all(len(worker) == 16 and worker.isascii() and not set(worker) & set(".*> ") for worker in workers)


VALID = "QmdRmnhDODDbZtNlOrPFcya0fjsu0j9skX_RM_ivu5_aqQbE"


@pytest.mark.parametrize(
    "wrong", ["", VALID[:-1], VALID + "a", VALID + "\n", "*" + VALID[1:], ">" + VALID[1:], "ü" * 48]
)
def test_invalid_session_id_has_no_worker(wrong: str) -> None:
    assert worker_of(VALID) == VALID[:16]
    assert worker_of(wrong) is None


def test_key_of_accepts_session_id_or_key() -> None:
    key = hashlib.sha256(VALID.encode()).hexdigest()
    assert digest(VALID) == key_of(VALID) == key_of(key) == key
    assert key_of(key.upper()) != key


def test_string_with_lone_surrogate_has_digest() -> None:
    assert digest("\ud800") != digest("")
