"""A handler for batches that returns what it gets."""

from typing import Any


def echo(messages: list[dict[str, Any]]) -> list[Any]:
    """The payload of each message."""
    return [message["payload"] for message in messages]
