"""The messages that slow consumers skip."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from ..protocol.encoding import EncodedMessage
from ..protocol.stream_messages import StreamMessage

__all__ = ["SkippedMessages"]


class SkippedMessages:
    """Messages of one flush that slow consumers skip.

    The newest of them are found once, for all consumers that skip the same messages.

    Args:
        messages: The messages, in order.
    """

    def __init__(self, messages: Sequence[EncodedMessage]) -> None:
        self.messages = messages

    @cached_property
    def stored(self) -> list[StreamMessage]:
        """The first message of each stream, which can be read again from there."""
        first: dict[object, StreamMessage] = {}
        for message in self.messages:
            if isinstance(message, StreamMessage):
                first.setdefault(message.stream, message)
        return list(first.values())

    @cached_property
    def others(self) -> "SkippedMessages":
        """The messages that no stream holds."""
        if not self.stored:
            return self
        return SkippedMessages([message for message in self.messages if not isinstance(message, StreamMessage)])

    @cached_property
    def newest(self) -> list[tuple[EncodedMessage, int]]:
        """The newest message of each pattern and subject, in order, with the number of older ones."""
        newest: dict[tuple[str, str], tuple[EncodedMessage, int]] = {}
        for message in self.messages:
            key = (message.prefix.pattern, message.subject)
            # Removed first, so that the order is that of the newest messages.
            older = newest.pop(key, None)
            newest[key] = (message, 0 if older is None else older[1] + 1)
        return list(newest.values())

    @cached_property
    def by_pattern(self) -> Counter[str]:
        """The number of messages of each pattern."""
        return Counter([message.prefix.pattern for message in self.messages])
