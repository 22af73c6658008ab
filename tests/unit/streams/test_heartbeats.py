from sanic_nats_bridge.streams.heartbeats import flow_control_reply, last_of_consumer

HEARTBEAT = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\nNats-Last-Stream: 9\r\n\r\n"


def test_last_message_of_a_heartbeat() -> None:
    assert last_of_consumer(HEARTBEAT) == 7
    assert last_of_consumer(b"NATS/1.0 100\r\n\r\n") is None
    assert last_of_consumer(b"NATS/1.0 100\r\nNats-Last-Consumer: x\r\n\r\n") is None


def test_flow_control_is_answered() -> None:
    assert flow_control_reply(b"", HEARTBEAT) == ""
    assert flow_control_reply(b"$JS.FC.S.c.1", b"NATS/1.0 100 FlowControl Request\r\n\r\n") == "$JS.FC.S.c.1"
    stalled = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Consumer-Stalled: $JS.FC.S.c.1\r\n\r\n"
    assert flow_control_reply(b"", stalled) == "$JS.FC.S.c.1"
