"""The lines of the NATS protocol with which the bridge publishes on one connection."""

import math

__all__ = ["Outgoing"]


class Outgoing:
    """The lines of messages, and the longest that was sent.

    A server ends the connection after a line over its ``max_control_line``, which it doesn't announce. So the length
    of the longest line is remembered, and after such an end the bridge sends none of this length. A length is that of
    the subject and the subject for answers.
    """

    __slots__ = ("longest", "refused_length")

    def __init__(self) -> None:
        self.refused_length = math.inf
        """The smallest length that the server is known to refuse."""
        self.longest = 0

    def message(self, subject: bytes, payload: bytes, headers: bytes = b"", reply: bytes = b"") -> bytes:
        """Return PUB, or HPUB if there is a header block, with the payload.

        Args:
            subject: A valid subject without wildcards.
            payload: The payload.
            headers: The header block with its first and its empty line; empty for none.
            reply: The subject for answers; empty for none.
        """
        length = len(subject) + len(reply)
        if length > self.longest:
            self.longest = length
        to = b"%b %b" % (subject, reply) if reply else subject
        if headers:
            return b"HPUB %b %d %d\r\n%b%b\r\n" % (to, len(headers), len(headers) + len(payload), headers, payload)
        return b"PUB %b %d\r\n%b\r\n" % (to, len(payload), payload)

    def question(self, sid: int, subject: bytes, payload: bytes, headers: bytes, reply: bytes) -> bytes:
        """Return SUB for the answers to a message, UNSUB after the first of them, and the message."""
        message = self.message(subject, payload, headers, reply)
        # Without a PING, whose PONG would often be the only data of a read, and would cost as much as the answer.
        return b"SUB %b %d\r\nUNSUB %d 1\r\n%b" % (reply, sid, sid, message)

    def line_refused(self, length: float) -> None:
        """Note that the server has ended the connection after a line over its limit.

        Args:
            length: The smallest length of a SUB that may be the reason; infinite if there is none.
        """
        # A shorter message isn't the reason if a longer SUB may be.
        if self.longest and (length == math.inf or self.longest > length):
            self.refused_length = min(self.refused_length, self.longest)
