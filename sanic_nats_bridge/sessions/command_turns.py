"""The turns of the event loop in which the commands of all sessions are executed."""

import asyncio
from collections import OrderedDict, deque

__all__ = ["CommandTurns"]

_UNITS_PER_TURN = 16


class CommandTurns:
    """A limit on the units of commands in one turn of the event loop (`rate_limit.units_of`).

    Commands beyond it wait for the next turns, and messages are written in between. Clients are served in turn: the
    command of one client waits for one of each other client, regardless of the number of their connections.
    """

    def __init__(self) -> None:
        self._spent = 0
        self._turn: asyncio.Handle | None = None
        # A plain dict takes long to find its first key if many before it were removed.
        self._waiting: OrderedDict[str, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()

    async def take(self, client: str, units: int) -> None:
        """Wait until a command of a client may be executed."""
        if not self._waiting and self._has_room(units):
            self._spend(units)
            return
        served = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((units, served))
        await served

    def _has_room(self, units: int) -> bool:
        return not self._spent or self._spent + units <= _UNITS_PER_TURN

    def _spend(self, units: int) -> None:
        self._spent += units
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self._spent = 0
        while self._waiting:
            client, commands = next(iter(self._waiting.items()))
            units, served = commands[0]
            # The task of a command may have been cancelled.
            if not served.done():
                if not self._has_room(units):
                    break
                self._spend(units)
                served.set_result(None)
            commands.popleft()
            # The client moves to the end of the queue if it has more commands.
            del self._waiting[client]
            if commands:
                self._waiting[client] = commands
