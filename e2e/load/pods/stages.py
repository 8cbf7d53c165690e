"""The handlers of a pipeline: one for batches, and one for single messages."""

import pathlib
import time
from typing import Any

STATE = pathlib.Path("/state")  # survives a restart of the container


class TryAgainError(Exception):
    """An error that passes."""

    severity = "recoverable"
    retry_after = 1


def first(messages: "list[dict[str, Any]]") -> "list[Any]":
    """The payload of each; poison fails.

    A message fails once if it has `again`, and exhausts the memory once if it has `exhaust`.
    """
    time.sleep(0.02)
    results: list[Any] = []
    for message in messages:
        payload = message["payload"]
        if "exhaust" in payload and is_first(payload["id"]):
            exhaust()
        elif "again" in payload and is_first(payload["id"]):
            results.append(TryAgainError())
            continue
        results.append(ValueError("poison") if payload.get("poison") else payload)
    return results


def second(message: "dict[str, Any]") -> Any:
    """The payload."""
    return message["payload"]


def is_first(name: str) -> bool:
    """Whether a message has not been here; the answer survives a restart."""
    marker = STATE / name
    if marker.exists():
        return False
    marker.touch()
    return True


def exhaust() -> None:
    """Use memory until the kernel ends the process."""
    pieces = []
    while True:
        pieces.append(b"x" * (10 << 20))
