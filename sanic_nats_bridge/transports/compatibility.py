"""The private parts of Sanic and `websockets` that this package uses, and a check that the installed ones have them."""

from types import GeneratorType
from typing import Any

from sanic import Request
from sanic.http import Http
from sanic.models.asgi import MockTransport
from sanic.server.protocols.websocket_protocol import WebSocketProtocol
from sanic.server.websockets.frame import WebsocketFrameAssembler
from sanic.server.websockets.impl import WebsocketImplProtocol
from websockets.protocol import State
from websockets.server import ServerProtocol

from ..compatibility import coroutine, function, require, slot, uses

__all__ = ["awaits_frame", "check_sanic"]


def check_sanic() -> None:
    """Check the installed versions of Sanic and `websockets`.

    Raises:
        IncompatiblePackageError: A private part is missing, or is of another kind.
    """
    connection = dict.fromkeys(
        ("_callback_check_timeouts", "_can_write", "_data_received", "_time", "recv_buffer"), slot
    )
    functions = {
        "data_received": function("self", "data"),
        "receive_more": uses("_data_received"),
        "resume_writing": uses("_can_write"),
        "send": uses("_can_write"),
    }
    require("sanic", WebSocketProtocol, connection | functions)
    attributes = (
        "assembler",
        "io_proto",
        "keepalive_ping_task",
        "ping_interval",
        "ping_timeout",
        "recv_cancel",
        "ws_proto",
    )
    require(
        "sanic",
        WebsocketImplProtocol,
        {
            "__init__": uses(*attributes),
            "data_received": function("self", "data"),
            "eof_received": function("self"),
            "fail_connection": function("self", "code", "reason"),
            "process_events": coroutine("self", "events"),
            "resume_frames": function("self"),
        },
    )
    parts = uses("chunks", "decoder", "message_complete", "message_fetched")
    require("sanic", WebsocketFrameAssembler, {"__init__": parts, "put": coroutine("self", "frame")})
    require("sanic", MockTransport, {"__init__": uses("_receive", "_send")})
    require("sanic", Request, {"stream": slot})
    slots = (
        "expecting_continue",
        "keep_alive",
        "protocol",
        "recv_buffer",
        "request_body",
        "request_max_size",
        "response_func",
        "stage",
    )
    of_http = dict.fromkeys(slots, slot)
    functions = {
        "__aiter__": uses("request_body"),
        "http1": uses("keep_alive", "request_body", "request_max_size", "response_func", "stage"),
        "log_response": function("self"),
    }
    require("sanic", Http, of_http | functions)
    require("sanic", WebSocketProtocol, {"access_log": slot, "request_max_size": slot})
    require("websockets", ServerProtocol, {"fail": function("self", "code", "reason")})
    received = {
        "close_rcvd": lambda value: value is None,
        "debug": lambda value: isinstance(value, bool),
        "parser": awaits_frame,
        "reader": lambda value: not value.buffer,
    }
    require("websockets", ServerProtocol(state=State.OPEN), received)


def awaits_frame(parser: Any) -> bool:
    """Return whether a parser of `websockets` has read no part of the next frame.

    It is a generator, which delegates to ``at_eof`` of its reader before each frame, and to ``read_exact`` within one.
    """
    while isinstance(parser, GeneratorType) and isinstance(parser.gi_yieldfrom, GeneratorType):
        parser = parser.gi_yieldfrom
    return isinstance(parser, GeneratorType) and parser.__name__ == "at_eof"
