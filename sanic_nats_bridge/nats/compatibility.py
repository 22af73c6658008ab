"""The private parts of nats-py that this package uses, and a check that the installed version has them."""

import inspect

from nats.aio.client import Client
from nats.aio.transport import TcpTransport, WebSocketTransport

from ..compatibility import Expectation, coroutine, require, uses

__all__ = ["CLIENT_PARTS", "check_nats_py"]


def _instance_of(kind: type) -> Expectation:
    return lambda value: isinstance(value, kind)


CLIENT_PARTS: dict[str, Expectation] = {
    "_close": coroutine("status", "do_cbs"),
    "_pings_outstanding": _instance_of(int),
    "_pongs": _instance_of(list),
    "_pongs_received": _instance_of(int),
    "_process_err": coroutine("err_msg"),
    "_process_info": coroutine("info", "initial_connection"),
    "_process_msg": coroutine("sid", "subject", "reply", "data", "headers"),
    "_process_ping": coroutine(),
    "_ps": lambda value: inspect.iscoroutinefunction(getattr(value, "parse", None)) and hasattr(value, "reset"),
    "_reading_task": _instance_of(type(None)),
    "_sid": _instance_of(int),
    "_transport": _instance_of(type(None)),
}
"""The private attributes of a new client that `Connection` uses."""


def check_nats_py() -> None:
    """Check the installed version of nats-py.

    Raises:
        IncompatiblePackageError: A private part is missing, or is of another kind.
    """
    require("nats-py", Client(), CLIENT_PARTS)
    streams = uses("_bare_io_reader", "_bare_io_writer", "_io_reader", "_io_writer")
    require("nats-py", TcpTransport, {"__init__": streams})
    require("nats-py", WebSocketTransport, {"__init__": uses("_client", "_ws", "_using_tls")})
